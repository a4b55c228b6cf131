import pyarrow
import pyarrow.parquet
import pytest

from sptune.tasks import load_splits, read_labeled
from tasks.data.data_files import ROWS, as_dicts, refusal, refusal_of, write_jsonl, write_parquet, write_separated


def test_a_missing_column_is_reported_once_with_the_columns_found(tmp_path, train_file):
    message = refusal(train_file=train_file, text_columns=("review",))
    assert message.startswith(f"{train_file}: no line has a field 'review'; found 'text', 'label'")
    path = write_separated(tmp_path / "train.csv", ROWS)
    message = refusal(train_file=path, label_column="stars")
    assert message.startswith(f"{path}: no column 'stars'; found 'text', 'label'")
    path = write_parquet(tmp_path / "train.parquet", as_dicts(ROWS))
    assert "no column 'stars'" in refusal(train_file=path, label_column="stars")


def test_a_lookalike_column_is_spelled_out(tmp_path, train_file):
    path = tmp_path / "train.csv"
    path.write_text("te\u00adxt,label\nfine,good\n", encoding="utf-8")
    assert "'te\\xadxt' (with U+00AD SOFT HYPHEN) looks like it: use 'text'" in refusal(train_file=path)
    assert "'Label' looks like it" in refusal(
        train_file=write_jsonl(path.with_suffix(".json"), [{"text": "a", "Label": 1}])
    )


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".parquet"])
def test_a_repeated_column_is_reported_if_it_is_read(tmp_path, extension):
    path = tmp_path / f"train{extension}"
    names = ["text", "label", "note", "note"]
    if extension == ".parquet":
        columns = [[f"text {index}" for index in range(40)], ["a", "b"] * 20, ["x"] * 40, ["y"] * 40]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(one) for one in columns], names), path)
    else:
        delimiter = "," if extension == ".csv" else "\t"
        rows = [names, *([f"text {index}", "ab"[index % 2], "x", "y"] for index in range(40))]
        path.write_text("\n".join(delimiter.join(row) for row in rows))
    assert load_splits(train_file=path)[0] == ("a", "b")
    message = refusal(train_file=path, label_column="note")
    assert message == f"{path}: 2 columns have the name 'note'. Rename those that should not be read."


def test_a_file_separated_by_semicolons_is_recognized(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text;label\nfine;good\n", encoding="utf-8")
    assert "Another character seems" in refusal(train_file=path)


def test_the_remedy_for_another_separator_works(tmp_path):
    path = tmp_path / "train.csv"
    message = refusal_of(path, "text;label\nfine;good\n")
    assert "'sep=;'" in message
    path.write_text("sep=;\n" + path.read_text())
    assert len(read_labeled(path, labels=("good", "bad"))) == 1
