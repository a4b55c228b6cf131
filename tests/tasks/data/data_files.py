"""Writes small data files for the tests and catches the errors they raise."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits

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


def refusal(**options):
    with pytest.raises(InputError) as caught:
        load_splits(**options)
    return str(caught.value)


def refusal_of(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return refusal(train_file=path)


def texts(splits):
    return {example.fields["text"] for split in (splits.train, splits.validation, splits.test) for example in split}
