"""Reads rows from Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from sptune.tasks.data.error_report import ErrorReport
from sptune.tasks.data.row_source import Rows, RowSource, declared_class_names

# Rows that are in memory at a time.
BATCH_SIZE = 1024


def open_parquet(path: Path) -> RowSource:
    """The rows of a Parquet file."""
    errors = ErrorReport(str(path), lambda number: f"{path}, row {number}")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        errors.add(f"not a Parquet file ({str(error).splitlines()[0]})", "Write the file again or fix its extension.")
        return RowSource(str(path), iter(()), errors, [])

    def rows() -> Rows:
        names = source.columns or []
        if source.selected is not None:
            names = [name for name in source.selected if name in names]
        number = 0
        try:
            for batch in file.iter_batches(BATCH_SIZE, columns=names):
                yield from _read_batch(batch, number, errors)
                number += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            errors.add(
                f"cannot be read further ({str(error).splitlines()[0]})", "Write the file again.", line=number + 1
            )

    schema = file.schema_arrow
    source = RowSource(str(path), rows(), errors, list(schema.names), declared_class_names(_features(schema)))
    return source


def _features(schema: pyarrow.Schema) -> datasets.Features | None:
    """What the datasets library stores in the metadata of the files that it writes, such as the names of classes."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception:  # other versions of the library write other metadata
        return None


def _read_batch(batch: pyarrow.RecordBatch, before: int, errors: ErrorReport) -> Rows:
    """The rows of a batch without those that hold what Python has no value for, which are reported.

    Args:
        batch: the rows.
        before: the number of rows of the file before them.
        errors: receives the errors.
    """
    try:
        yield from enumerate(batch.to_pylist(), before + 1)
        return
    except (ValueError, OverflowError):  # a text that is not UTF-8, or a date after the year 9999
        pass
    for place in range(len(batch)):
        values: dict[str, Any] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values[name] = column[place].as_py()
            except (ValueError, OverflowError) as error:
                remedy = "Write the value again, or remove the row."
                errors.add(f"cannot be read ({error})", remedy, line=before + place + 1, field=name)
        if len(values) == batch.num_columns:
            yield before + place + 1, values
