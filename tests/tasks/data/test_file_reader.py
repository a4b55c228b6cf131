import gzip
import json

import pytest

from sptune.tasks import load_splits
from tasks.data.data_files import ROWS, as_dicts, texts, write_jsonl, write_parquet, write_separated


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


AS_WRITTEN = [
    "1.1",
    "1.10",
    "01",
    "1",
    "NA",
    "None",
    "null",
    "nan",
    "inf",
    "1e5",
    "TRUE",
    "true ",
    "2024-01-31",
    "0x10",
]


CLASSES = sorted(label.strip() for label in AS_WRITTEN if label != "true ")


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("way", ["folder", "file", "dataset"])
def test_text_is_not_interpreted(tmp_path, extension, way):
    rows = [(f"{label} {index}", label) for index in range(8) for label in CLASSES]
    path = tmp_path / "kept" / f"train{extension}"
    path.parent.mkdir()
    if extension == ".parquet":
        write_parquet(path, as_dicts(rows))
    elif extension == ".json":
        path.write_text(json.dumps(as_dicts(rows)))
    elif extension == ".jsonl":
        write_jsonl(path, as_dicts(rows))
    else:
        write_separated(path, rows, "\t" if extension == ".tsv" else ",")
        if extension == ".csv.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    name = {"folder": {"dataset": str(path.parent)}, "file": {"train_file": path}, "dataset": {"dataset": str(path)}}[
        way
    ]
    labels, splits = load_splits(**name)
    assert sorted(labels) == CLASSES
    examples = [*splits.train, *splits.validation, *splits.test]
    assert {(example.fields["text"], example.label) for example in examples} == set(rows)
    assert splits.train[0].where.startswith(
        f"{path}{'[' if extension == '.json' else ', row' if extension == '.parquet' else ':'}"
    )
