import pytest

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
