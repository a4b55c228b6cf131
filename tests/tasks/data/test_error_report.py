from tasks.data.data_files import ROWS, as_dicts, refusal, write_jsonl


def test_the_first_ten_errors_and_their_number_are_reported(tmp_path):
    rows = as_dicts(ROWS)
    for index in range(5, 20):  # of five kinds with at most three each
        rows[index] |= [{"text": ""}, {"text": index}, {"text": [index]}, {"label": ""}, {"label": {}}][index % 5]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "fine", "label": "good"}, {"text": "", "label": "bad"}])
    message = refusal(train_file=train, test_file=test)
    assert f"{train} has 15 problems, the first 10:" in message
    assert f"{train}:6," in message
    assert f"{train}:15," in message
    assert f"{train}:16," not in message
    assert f"{test}:2, field 'text', value ''" in message


def test_many_errors_of_one_kind_are_reported_as_one(tmp_path):
    rows = as_dicts(ROWS)
    for index in range(5, 20):
        rows[index]["text"] = index
    rows[20]["text"] = ""
    message = refusal(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert "has 16 problems:" in message
    assert message.count("a number, not text") == 1
    assert "The same in 14 more: 7, 8, 9," in message
    assert "Values: 5, 6, 7," in message
    assert "train.jsonl:21, field 'text', value ''" in message


def test_lines_in_another_encoding_are_one_error(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(b"text,label\n" + "caf\u00e9,good\ntr\u00e8s,bad\n".encode("latin-1") * 10)
    message = refusal(train_file=file)
    assert message.count("iconv") == 1
    assert "The same in 19 more: 3, 4," in message
