"""Reads rows from Parquet files."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from sptune.tasks.data.error_report import ErrorReport
from sptune.tasks.data.row_source import Rows, RowSource, declared_class_names


def open_parquet(path: Path) -> RowSource:
    """The rows of a Parquet file."""
    errors = ErrorReport(str(path), lambda number: f"{path}, row {number}")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        errors.add(f"not a Parquet file ({str(error).splitlines()[0]})", "Write the file again or fix its extension.")
        return RowSource(str(path), iter(()), errors, [])

    def rows() -> Rows:
        number = 0
        try:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
        except (pyarrow.ArrowException, OSError) as error:
            errors.add(
                f"cannot be read further ({str(error).splitlines()[0]})", "Write the file again.", line=number + 1
            )

    schema = file.schema_arrow
    # The datasets library stores the class names in the metadata of the files it writes.
    features = datasets.Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else None
    return RowSource(str(path), rows(), errors, list(schema.names), declared_class_names(features))
