"""Tokenized rows as a dataset, in memory or, if they are many, in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from sptune.tasks.stored_examples import temporary_files

CHUNK = 4096  # examples that are tokenized together
MAX_IN_MEMORY = 64 * 2**20  # bytes


def token_dataset(chunks: Iterable[dict[str, list[Any]]], *, max_in_memory: int = MAX_IN_MEMORY) -> Dataset:
    """One dataset of the rows of all chunks.

    Args:
        chunks: at least one; lists of equal length by column.
        max_in_memory: a larger dataset, in bytes, is a file in the folder for temporary files, which is mapped into
            memory and deleted with the dataset.
    """
    kept, size, chunks = [], 0, iter(chunks)
    for columns in chunks:
        kept.append(Dataset.from_dict(columns))
        size += kept[-1].data.nbytes
        if size > max_in_memory:
            break
    start = kept[0] if len(kept) == 1 else concatenate_datasets(kept)
    return start if size <= max_in_memory else _in_file(start, chunks)


def _in_file(start: Dataset, chunks: Iterable[dict[str, list[Any]]]) -> Dataset:
    """The rows of a dataset and of more chunks, in a file."""
    schema = start.data.table.schema
    with temporary_files():
        folder = tempfile.mkdtemp(prefix="sptune-")
    try:
        path = Path(folder) / "tokens.arrow"
        with temporary_files(), pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            writer.write_table(start.data.table)
            for columns in chunks:
                writer.write_table(Dataset.from_dict(columns, features=start.features).data.table)
        dataset = Dataset.from_file(str(path))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Selections and copies of a dataset share its table.
    weakref.finalize(dataset.data.table, shutil.rmtree, folder, ignore_errors=True)
    return dataset
