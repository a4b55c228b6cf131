import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sptune.errors import InputError
from sptune.tasks import load_benchmark, load_splits, read_labelled, read_unlabelled

ROWS = [(f"sentence number {index} , told twice", "good" if index % 2 else "bad") for index in range(40)]
OTHERS = [(f"another sentence {index}", "good" if index % 2 else "bad") for index in range(10)]


def as_dicts(rows):
    return [{"text": text, "label": label} for text, label in rows]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_separated(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("text", "label"), *rows])
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def train_file(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", as_dicts(ROWS))


def refusal(**options):
    with pytest.raises(InputError) as caught:
        load_splits(**options)
    return str(caught.value)


def texts(splits):
    return {example.fields["text"] for split in (splits.train, splits.validation, splits.test) for example in split}


# Formats


@pytest.mark.parametrize("extension", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path, extension):
    path = tmp_path / f"train{extension}"
    if extension == ".parquet":
        write_parquet(path, as_dicts(ROWS))
    elif extension in (".csv", ".tsv"):
        write_separated(path, ROWS, "\t" if extension == ".tsv" else ",")
    else:
        write_jsonl(path, as_dicts(ROWS))
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert texts(splits) == {text for text, _ in ROWS}


def test_an_example_knows_its_line(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text('text\n"one\nover two lines"\n\nthree\n', encoding="utf-8")
    assert [(example.fields["text"], example.where) for example in read_unlabelled(path)] == [
        ("one\nover two lines", f"{path}:2"),
        ("three", f"{path}:5"),
    ]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\nfine,a\r\nalso fine,b\r\n")
    assert [example.label for example in read_labelled(path, labels=("a", "b"))] == ["a", "b"]


def test_quotation_marks_in_tab_separated_text_need_no_quoting(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"Yes" he said\ta\nhe said "no\tb\n', encoding="utf-8")
    found = read_labelled(path, labels=("a", "b"))
    assert [example.fields["text"] for example in found] == ['"Yes" he said', 'he said "no']


def test_quoted_tab_separated_text_may_hold_tabs_and_line_breaks(tmp_path):
    path = write_separated(tmp_path / "train.tsv", [("a\tb\nc", "x"), ("d", "y")], "\t")
    assert [example.fields["text"] for example in read_labelled(path, labels=("x", "y"))] == ["a\tb\nc", "d"]


def test_a_text_longer_than_the_csv_module_expects_is_read(tmp_path):
    path = write_separated(tmp_path / "train.csv", [("long " * 50_000, "a"), ("short", "b")])
    assert len(read_labelled(path, labels=("a", "b"))[0].fields["text"]) == 250_000


def test_pairs_take_two_columns(tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "gold": i % 2} for i in range(20)]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    labels, splits = load_splits(train_file=path, text_columns=("premise", "hypothesis"), label_column="gold")
    assert labels == ("0", "1")
    example = splits.train[0]
    assert list(example.fields) == ["premise", "hypothesis"]
    assert example.fields["premise"][1:] == example.fields["hypothesis"][1:]


# Labels


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["b", "a", "C"], ("C", "a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([1.0, 2.0, 0.5], ("0.5", "1", "2")),
        ([True, False, True], ("false", "true")),
        ([" yes ", "yes", "no"], ("no", "yes")),
    ],
)
def test_numbers_are_ordered_as_numbers_and_names_by_the_alphabet(tmp_path, given, expected):
    rows = [{"text": f"text {index}", "label": given[index % 3]} for index in range(60)]
    assert load_splits(train_file=write_jsonl(tmp_path / "train.jsonl", rows))[0] == expected


def test_the_order_of_labels_can_be_given(train_file):
    assert load_splits(train_file=train_file, labels=["good", "bad"])[0] == ("good", "bad")
    message = refusal(train_file=train_file, labels=["good", "fine"])
    assert "train.jsonl:1, field 'label', value 'bad'" in message
    assert "'good', 'fine'" in message


def test_a_given_class_without_examples_is_noted(train_file):
    _, splits = load_splits(train_file=train_file, labels=["good", "bad", "ugly"])
    assert any("'ugly' has no example" in note for note in splits.notes)


def test_a_class_that_is_another_in_capitals_or_spaces_is_a_slip(tmp_path):
    rows = [{"text": f"text {index}", "label": ("New York", "Rome")[index % 2]} for index in range(40)]
    rows[6]["label"] = "new  york"
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert f"{file}:7, field 'label', value 'new  york'" in message
    assert "'New York', too, with 19 examples" in message
    labels, _ = load_splits(train_file=file, labels=["New York", "Rome", "new  york"])
    assert labels == ("New York", "Rome", "new  york")


def test_a_class_with_hardly_an_example_is_noted(tmp_path):
    rows = [{"text": f"text {index}", "label": ("a", "b")[index % 2]} for index in range(200)]
    rows[6]["label"] = "c"
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert [note for note in splits.notes if note.endswith("hardly be learned.")] == [
        f"The class 'c' has 1 of the 200 examples in {tmp_path / 'train.jsonl'}: it will hardly be learned."
    ]
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "few.jsonl", as_dicts(ROWS)))
    assert not any(note.endswith("hardly be learned.") for note in splits.notes)


def test_numbers_in_one_file_and_digits_in_another_are_the_same_labels(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(20)])
    test = write_separated(tmp_path / "test.csv", [("x", "0"), ("y", "1")])
    labels, splits = load_splits(train_file=train, test_file=test)
    assert {example.label for example in splits.test} == set(labels)


# What is reported


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "  ", "label": "good"}', "{path}:2, field 'text', value '  ': empty text"),
        ('{"text": null, "label": "good"}', "{path}:2, field 'text', value None: empty text"),
        ('{"text": 5, "label": "good"}', "{path}:2, field 'text', value 5: a number, not text"),
        ('{"text": "half \\ud800", "label": "good"}', "{path}:2, field 'text', value .*surrogate"),
        ('{"text": "fine", "label": ""}', "{path}:2, field 'label', value '': no label"),
        ('{"text": "fine", "label": null}', "{path}:2, field 'label', value None: no label"),
        ('{"text": "fine", "label": NaN}', "{path}:2, field 'label', value None: no label"),
        ('{"text": "fine", "label": ["good"]}', r"{path}:2, field 'label', value \['good'\]: a list, not one class"),
        ('{"text": "fine"}', "{path}:2, field 'label': missing, though other lines have it"),
        ('{"text": "fine", "label": ', "{path}:2: broken JSON at column"),
        ('["fine", "good"]', "{path}:2: a JSON list, not an object"),
    ],
)
def test_a_bad_line_is_reported_with_file_line_field_value_and_remedy(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    good = [json.dumps(row) for row in as_dicts(ROWS)]
    path.write_text("\n".join([good[0], line, *good[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match=message.format(path=path)) as caught:
        load_splits(train_file=path)
    remedy = str(caught.value).rsplit(". ", 1)[1]
    assert remedy.split()[0] in ("Write", "Name", "Add")


def test_several_problems_are_reported_together_the_first_ten_and_the_count(tmp_path):
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


def test_a_missing_column_is_reported_once_with_the_columns_there_are(tmp_path, train_file):
    message = refusal(train_file=train_file, text_columns=("review",))
    assert message.startswith(f"{train_file}: no line has a field 'review'; found 'text', 'label'")
    path = write_separated(tmp_path / "train.csv", ROWS)
    message = refusal(train_file=path, label_column="stars")
    assert message.startswith(f"{path}: no column 'stars'; found 'text', 'label'")
    path = write_parquet(tmp_path / "train.parquet", as_dicts(ROWS))
    assert "no column 'stars'" in refusal(train_file=path, label_column="stars")


def test_a_file_separated_by_semicolons_is_recognised(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text;label\nfine;good\n", encoding="utf-8")
    assert "another character" in refusal(train_file=path)


def test_a_row_with_too_many_values_says_to_quote(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\nfine,good\nnice, really,good\n", encoding="utf-8")
    message = refusal(train_file=path)
    assert f"{path}:3: 3 values where the header names 2 columns (text, label)" in message
    assert "quotation marks" in message


def test_an_unclosed_quotation_mark_is_reported_where_it_opens(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\nfine,good\n"nice,bad\nmore,good\n', encoding="utf-8")
    assert f"{path}:3: cannot be read on" in refusal(train_file=path)


def test_a_wrong_encoding_is_reported_with_the_line_and_the_command(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes("text,label\nfine,good\ncrème brûlée,bad\n".encode("cp1252"))
    message = refusal(train_file=path)
    assert f"{path}:3: not UTF-8" in message
    assert "iconv -f CP1252 -t UTF-8" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_utf_16_is_recognised(tmp_path, encoding, name):
    path = tmp_path / name
    path.write_bytes("text,label\nfine,good\n".encode(encoding))
    message = refusal(train_file=path)
    assert "probably UTF-16" in message
    assert "iconv -f UTF-16" in message


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refusal(train_file=path).startswith(f"{path}: empty")


def test_a_header_without_rows_is_reported(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n", encoding="utf-8")
    assert f"{path}: empty: there is a header but no row" in refusal(train_file=path)


def test_a_json_list_over_lines_is_told_from_json_lines(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(as_dicts(ROWS), indent=2), encoding="utf-8")
    message = refusal(train_file=path)
    assert message.startswith(f"{path}:1: a JSON list over several lines")


def test_what_is_no_parquet_is_reported(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text("text,label\n", encoding="utf-8")
    assert "not a Parquet file" in refusal(train_file=path)


def test_a_bad_parquet_row_is_counted_from_one(tmp_path):
    rows = as_dicts(ROWS)
    rows[6]["text"] = ""
    path = write_parquet(tmp_path / "train.parquet", rows)
    assert f"{path}, row 7, field 'text'" in refusal(train_file=path)


def test_one_class_only_is_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", "good") for i in range(9)]))
    assert f"{path}, field 'label', value 'good': all 9 examples have this one label" in refusal(train_file=path)


def test_labels_that_are_numbers_to_predict_are_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", i / 7) for i in range(90)]))
    assert "90 different labels in 90 examples" in refusal(train_file=path)


def test_a_test_file_whose_labels_were_never_seen_in_training_is_reported(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "1"), ("b", "0"), ("c", "1")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}, field 'label': none of its labels ('0', '1') was seen in training" in message
    assert f"{train_file} has 'bad', 'good'" in message
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "god")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}:2, field 'label', value 'god': this label was never seen in training" in message


def test_a_test_file_of_one_class_is_noted(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "good")]))
    _, splits = load_splits(train_file=train_file, test_file=test)
    assert any("of the class 'good'" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either files"),
        ({"train_file": "train.jsonl", "data": "x"}, "Give either files"),
        ({"data": "x", "test_file": "test.jsonl"}, "go with train_file"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"train_file": "train.jsonl", "text_columns": ()}, "at least one column"),
        ({"train_file": "train.jsonl", "text_columns": ("label",)}, "at least one column"),
        ({"train_file": "train.jsonl", "labels": ["good"]}, "two different classes"),
        ({"train_file": "train.jsonl", "test_file": "./train.jsonl"}, "same file"),
        ({"train_file": "folder"}, "is a folder"),
        ({"train_file": "train.xlsx"}, r"'\.xlsx' are not read.*\.jsonl"),
        ({"train_file": "train.jsonl", "few_shot": 100}, "few_shot=100"),
    ],
)
def test_options_that_cannot_be_right(tmp_path, monkeypatch, train_file, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(InputError, match=message):
        load_splits(**options)


def test_texts_to_predict_need_no_label_and_are_checked_too(tmp_path):
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "fine"}, {"text": ""}])
    with pytest.raises(InputError, match=f"{path}:2, field 'text', value ''"):
        read_unlabelled(path)


# Datasets names


@pytest.fixture
def hub_like():
    """Splits with a class label, in its declared order."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "unused", "affirmative"])}
    )

    def split(rows, withheld=False):
        label = {"bad": 0, "good": 2}
        return datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "label": [-1 if withheld else label[name] for _, name in rows]},
            features,
        )

    return lambda **splits: datasets.DatasetDict(
        {name: split(rows, name == "withheld_test") for name, rows in splits.items()}
    )


def test_a_folder_that_save_to_disk_wrote(tmp_path, hub_like):
    hub_like(train=ROWS, test=OTHERS).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(data=str(tmp_path / "saved"))
    assert labels == ("negative", "affirmative")
    assert len(splits.test) == 10
    assert splits.test[3].where.endswith("saved[test][3]")
    assert splits.test[3].fields["text"] == "another sentence 3"


def test_a_single_saved_data_set_is_divided(tmp_path, hub_like):
    hub_like(train=ROWS)["train"].save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(data=str(tmp_path / "saved"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (28, 4, 8)


def test_a_local_folder_of_files(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", as_dicts(ROWS))
    write_jsonl(folder / "test.jsonl", as_dicts(OTHERS))
    labels, splits = load_splits(data=str(folder))
    assert labels == ("bad", "good")
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}


def test_a_bad_row_of_a_data_set_is_named_as_it_is_indexed(tmp_path, hub_like):
    rows = [*ROWS[:4], (" ", "bad"), *ROWS[4:]]
    name = str(tmp_path / "saved")
    hub_like(train=rows).save_to_disk(name)
    assert f"{name}[train][4], field 'text', value ' ': empty text" in refusal(data=name)
    assert "no column 'review'; found 'text', 'label'" in refusal(data=name, text_columns=("review",))


def test_a_test_split_with_withheld_labels_gives_way_to_validation(tmp_path, hub_like):
    loaded = hub_like(train=ROWS, validation=OTHERS, withheld_test=ROWS[:5])
    loaded["test"] = loaded.pop("withheld_test")
    name = str(tmp_path / "saved")
    loaded.save_to_disk(name)
    _, splits = load_splits(data=name)
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}
    assert (len(splits.train), len(splits.validation)) == (36, 4)
    assert any("withheld" in note for note in splits.notes)


def test_splits_with_other_names_can_be_chosen(tmp_path, hub_like):
    name = str(tmp_path / "saved")
    hub_like(train=ROWS, validation_matched=OTHERS).save_to_disk(name)
    _, splits = load_splits(data=name, split_names={"test": "validation_matched"})
    assert len(splits.test) == 10
    assert "no split 'exam'; they have train, validation_matched" in refusal(data=name, split_names={"test": "exam"})


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(data="nobody/has-this-data", data_config="plain")
    assert message.startswith("The data 'nobody/has-this-data' with configuration 'plain' cannot be loaded:")
    assert "Without a network give a local folder" in message


def test_a_folder_without_data_says_what_it_should_hold(tmp_path):
    assert "named after their split" in refusal(data=str(tmp_path))


def test_a_missing_class_label_is_reported(tmp_path, hub_like):
    loaded = hub_like(train=ROWS)["train"].to_dict()
    loaded["label"][2] = -1
    features = hub_like(train=ROWS)["train"].features
    datasets.Dataset.from_dict(loaded, features).save_to_disk(str(tmp_path / "saved"))
    assert "saved[train][2], field 'label', value None: no label" in refusal(data=str(tmp_path / "saved"))


def test_a_benchmark_task_brings_its_own_names_for_columns_and_classes(tmp_path):
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
        }
    )
    columns = {
        "sentence1": [f"a {i}" for i in range(40)],
        "sentence2": [f"b {i}" for i in range(40)],
        "label": [i % 2 for i in range(40)],
    }
    split = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict({"train": split, "test": split.select(range(10))}).save_to_disk(str(tmp_path / "mrpc"))
    splits = load_benchmark("mrpc", data=str(tmp_path / "mrpc"))
    assert len(splits.test) == 10
    assert splits.test[1].fields == {"text_a": "a 1", "text_b": "b 1"}
    assert [example.label for example in splits.test[:2]] == ["not_paraphrase", "paraphrase"]
