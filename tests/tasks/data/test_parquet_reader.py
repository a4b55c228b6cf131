import json

import pyarrow
import pyarrow.parquet
import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits
from tasks.data.data_files import ROWS, as_dicts, refusal, write_parquet


def test_a_file_that_is_not_parquet_is_reported(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text("text,label\n", encoding="utf-8")
    assert "not a Parquet file" in refusal(train_file=path)


def test_a_bad_parquet_row_is_counted_from_one(tmp_path):
    rows = as_dicts(ROWS)
    rows[6]["text"] = ""
    path = write_parquet(tmp_path / "train.parquet", rows)
    assert f"{path}, row 7, field 'text'" in refusal(train_file=path)


@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_parquet_file_can_declare_its_classes(tmp_path, make_dataset, way):
    make_dataset(train=ROWS)["train"].to_parquet(tmp_path / "train.parquet")
    name = {"train_file": tmp_path / "train.parquet"} if way == "file" else {"dataset": str(tmp_path)}
    assert load_splits(**name)[0] == ("negative", "affirmative")


def test_columns_that_are_not_wanted_are_not_read(tmp_path):
    rows = {
        "text": [f"text {number}" for number in range(20)],
        "label": ["a", "b"] * 10,
        "when": pyarrow.array([10**18] * 20).cast(pyarrow.timestamp("us")),  # Python has no such date
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    _, splits = load_splits(train_file=tmp_path / "train.parquet")
    assert set(splits.train[0].fields) == {"text"}


def test_a_value_that_cannot_be_read_is_reported_with_row_and_column(tmp_path):
    texts = [b"caf\xe9" if number == 1500 else b"coffee %d" % number for number in range(2000)]
    binary = pyarrow.array(texts)
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), binary.buffers())
    table = pyarrow.table({"text": text, "label": ["a", "b"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet, row 1501, field 'text': cannot be read \('utf-8' codec"):
        load_splits(train_file=tmp_path / "train.parquet")


def test_metadata_of_another_version_of_datasets_are_no_error(tmp_path):
    table = pyarrow.table({"text": [f"text {number}" for number in range(20)], "label": ["a", "b"] * 10})
    info = {"info": {"features": {"text": {"dtype": "string", "_type": "FromTheFuture"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    classes, _ = load_splits(train_file=tmp_path / "train.parquet")
    assert classes == ("a", "b")
