"""Opens a data file with the reader for its extension."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sptune.errors import InputError
from sptune.tasks.data.csv_reader import open_separated_values
from sptune.tasks.data.json_reader import open_json
from sptune.tasks.data.parquet_reader import open_parquet
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.data.text_lines import COMPRESSIONS
from sptune.whole_files import expanded

READERS: dict[str, Callable[[Path], RowSource]] = {
    ".jsonl": open_json,
    ".ndjson": open_json,
    ".json": open_json,
    ".csv": partial(open_separated_values, delimiter=","),
    ".tsv": partial(open_separated_values, delimiter="\t"),
    ".parquet": open_parquet,
}


def open_file(path: str | Path) -> RowSource:
    """Open a data file.

    Raises:
        InputError: if the file does not exist, cannot be opened or has an unknown extension.
    """
    path = expanded(path)
    reader = READERS.get(file_format(path))
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path; it is relative to the folder {Path.cwd()}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file. Name a file in it, or pass the folder as the dataset.")
    if reader is None:
        raise InputError(
            f"{path}: files that end in {path.suffix or 'nothing'!r} are not supported. Supported are "
            f"{', '.join(READERS)}; rename or convert the file."
        )
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def file_format(path: Path) -> str:
    """The extension of a file in lower case, without that of a compression."""
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()
