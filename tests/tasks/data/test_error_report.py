from tasks.data.data_files import ROWS, as_dicts, refusal, write_jsonl


def test_the_first_ten_errors_and_their_number_are_reported(tmp_path):
    rows = as_dicts(ROWS)
    for index in range(5, 20):
        rows[index]["text"] = ""
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "fine", "label": "good"}, {"text": "", "label": "bad"}])
    message = refusal(train_file=train, test_file=test)
    assert f"{train} has 15 problems, the first 10:" in message
    assert f"{train}:6," in message
    assert f"{train}:15," in message
    assert f"{train}:16," not in message
    assert f"{test}:2, field 'text', value ''" in message
