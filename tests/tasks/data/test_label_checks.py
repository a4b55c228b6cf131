import unicodedata

import datasets
import pyarrow
import pyarrow.parquet

from sptune.tasks import load_splits
from tasks.data.data_files import OTHERS, ROWS, as_dicts, refusal, texts, write_jsonl, write_separated


def test_numbers_in_one_file_and_digits_in_another_are_the_same_labels(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(20)])
    test = write_separated(tmp_path / "test.csv", [("x", "0"), ("y", "1")])
    labels, splits = load_splits(train_file=train, test_file=test)
    assert {example.label for example in splits.test} == set(labels)


def test_a_lookalike_of_a_class_is_spelled_out(tmp_path):
    cafe = unicodedata.normalize("NFC", "café")
    train = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"t{i}", (cafe, "tea")[i % 2]) for i in range(40)]))
    test = write_jsonl(
        tmp_path / "test.jsonl", as_dicts([("x", unicodedata.normalize("NFD", cafe)), ("y", "tea\u200b")])
    )
    for message in (refusal(train_file=train, test_file=test), refusal(train_file=test, labels=[cafe, "tea"])):
        assert "'cafe\\u0301' (with U+0301 COMBINING ACUTE ACCENT) only looks like 'caf\\xe9'" in message
        assert "'tea\\u200b' (with U+200B ZERO WIDTH SPACE) only looks like 'tea'" in message


def test_test_labels_missing_from_the_training_data_are_reported(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "1"), ("b", "0"), ("c", "1")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}, field 'label': none of its labels ('0', '1') occurs in the training data" in message
    assert f"{train_file} has 'bad', 'good'" in message
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "god")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}:2, field 'label', value 'god': this label does not occur in the training data" in message


def dataset_with_labels(make_dataset, rows):
    loaded = make_dataset(train=ROWS)["train"].to_dict()
    loaded["label"] = [rows.get(index, label) for index, label in enumerate(loaded["label"])]
    return datasets.Dataset.from_dict(loaded, make_dataset(train=ROWS)["train"].features)


def test_a_class_label_of_minus_one_is_reported_and_can_be_filtered(tmp_path, make_dataset):
    data = dataset_with_labels(make_dataset, {2: -1})
    data.save_to_disk(str(tmp_path / "saved"))
    message = refusal(dataset=str(tmp_path / "saved"))
    assert "saved[train][2], field 'label', value -1: no label" in message
    assert "data.filter(lambda row: row['label'] != -1).save_to_disk(FOLDER)" in message
    data.filter(lambda row: row["label"] != -1).save_to_disk(str(tmp_path / "filtered"))
    assert len(texts(load_splits(dataset=str(tmp_path / "filtered"))[1])) == len(ROWS) - 1
    data.to_parquet(tmp_path / "train.parquet")
    assert "row 3, field 'label', value -1: no label" in refusal(train_file=tmp_path / "train.parquet")


def test_a_class_index_without_a_name_is_reported(tmp_path):
    table = pyarrow.Table.from_pylist([{"text": f"text {index}", "label": index % 2 + 6} for index in range(40)])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    pyarrow.parquet.write_table(table.cast(features.arrow_schema), tmp_path / "train.parquet")
    message = refusal(train_file=tmp_path / "train.parquet")
    assert "row 1, field 'label', value 6: not one of the declared classes 0 (a), 1 (b)" in message


def test_a_file_without_any_labels_is_reported_once(tmp_path, make_dataset):
    make_dataset(withheld_test=OTHERS)["withheld_test"].to_parquet(tmp_path / "test.parquet")
    make_dataset(train=ROWS)["train"].to_parquet(tmp_path / "train.parquet")
    message = refusal(train_file=tmp_path / "train.parquet", test_file=tmp_path / "test.parquet")
    assert message.startswith(f"{tmp_path / 'test.parquet'}, field 'label', value -1: none of its 10 rows has a label")
    assert "\n" not in message


def test_a_label_that_no_file_can_hold_is_refused(tmp_path):
    rows = [{"text": f"text {number}", "label": ["a\ud800", "b"][number % 2]} for number in range(20)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    assert f"{path}:1, field 'label', value 'a\\ud800': half a surrogate pair" in refusal(train_file=path)
