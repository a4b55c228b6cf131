"""Rows of JSON Lines, CSV, TSV and Parquet files and of Datasets names, each with its line or row number.

What cannot be read is noted in the source's problems; what the rows say is judged in data.py.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.problems import Problems, kind_of, shortened

Rows = Iterator[tuple[int, dict[str, Any]]]

LONGEST_VALUE = 2**31 - 1  # characters in one CSV value; the csv module's own limit is 131,072


@dataclass
class RowSource:
    """Rows with their numbers, read when asked for.

    Attributes:
        name: the file or split, as the user gave it.
        rows: (line or row number, values by column).
        problems: what could not be read so far.
        columns: the columns, where a header or schema names them; None for JSON Lines.
        class_names: for a column of class indices, the names they stand for.
    """

    name: str
    rows: Rows
    problems: Problems
    columns: list[str] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)


def open_file(path: str | Path) -> RowSource:
    """The rows of a file, by its extension.

    Raises:
        InputError: no such file, an extension not known, or a file that cannot be opened.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path; it is relative to the folder {Path.cwd()}.")
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, not a file. Name a file in it, or give the folder as a Datasets name (data)."
        )
    if reader is None:
        raise InputError(
            f"{path}: files ending in {path.suffix or 'nothing'!r} are not read. Known are {', '.join(READERS)}; "
            "rename or convert the file."
        )
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def _decoded_lines(path: Path, problems: Problems) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark; a line in another encoding is noted."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                broken = ascii("\0") if "\0" in text else None
            except UnicodeDecodeError as error:
                text = line.decode("utf-8", errors="replace")
                broken = ascii(line[max(error.start - 12, 0) : error.start + 12])
            if broken is not None:
                wide = b"\0" in line
                problems.add(
                    f"not UTF-8{', probably UTF-16' if wide else ''} (near {broken})",
                    f"Save the file as UTF-8, for example: iconv -f {'UTF-16' if wide else 'CP1252'} -t UTF-8.",
                    line=number,
                )
                if wide:
                    return
            yield text


def _json_lines(path: Path) -> RowSource:
    problems = Problems(str(path))

    def rows() -> Rows:
        for number, line in enumerate(_decoded_lines(path, problems), start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.strip())
            except (ValueError, RecursionError) as error:
                if number == 1 and line.lstrip().startswith("["):
                    problems.add(
                        "a JSON list over several lines, where one object a line is expected",
                        "Write JSON Lines, for example: pandas.read_json(path).to_json(new, orient='records', "
                        "lines=True).",
                        line=number,
                    )
                    return
                where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                problems.add(
                    f"broken JSON{where} ({reason}) in {shortened(line.strip())}",
                    "Write one complete JSON object on each line.",
                    line=number,
                )
                continue
            if not isinstance(values, dict):
                problems.add(
                    f"a JSON {kind_of(values)}, not an object",
                    'Write an object with names, such as {"text": "...", "label": "..."}.',
                    line=number,
                )
                continue
            yield number, values

    return RowSource(str(path), rows(), problems)


def _separated(path: Path, delimiter: str) -> RowSource:
    problems = Problems(str(path))
    unquoted = delimiter == "\t" and not _quotes_are_consistent(path)
    quoting = csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL
    records = _records(path, problems, delimiter, quoting)
    _, header = next(records, (0, []))
    columns = [name.strip() for name in header]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        problems.add(f"the header names {', '.join(map(repr, repeated))} more than once", "Rename the columns.", line=1)

    def rows() -> Rows:
        for number, values in records:
            if len(values) != len(columns):
                separator = "tabs" if delimiter == "\t" else "commas"
                problems.add(
                    f"{len(values)} values where the header names {len(columns)} columns ({', '.join(columns)})",
                    f'Put text that holds {separator} or line breaks in quotation marks, and write "" for one inside.',
                    line=number,
                )
                continue
            yield number, dict(zip(columns, values, strict=True))

    return RowSource(str(path), rows(), problems, columns)


def _records(path: Path, problems: Problems, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """The records of a file, blank lines left out, each with the line it starts on."""
    most = csv.field_size_limit(LONGEST_VALUE)
    lines = _decoded_lines(path, problems)
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    start = 1
    try:
        for values in reader:
            if values and any(value.strip() for value in values):
                yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        problems.add(
            f"cannot be read on from here ({error})",
            'Close every quotation mark that opens, and write "" for one inside quoted text.',
            line=start,
        )
    finally:
        csv.field_size_limit(most)


def _quotes_are_consistent(path: Path) -> bool:
    """Whether a file read with quotation marks has the header's number of values in every record.

    Many tab-separated files are written without quoting: there a quotation mark is only a character.
    """
    silent = Problems(str(path))
    widths = {len(values) for _, values in _records(path, silent, "\t", csv.QUOTE_MINIMAL)}
    return not silent.count and len(widths) <= 1


def _comma_separated(path: Path) -> RowSource:
    return _separated(path, ",")


def _tab_separated(path: Path) -> RowSource:
    return _separated(path, "\t")


def _parquet(path: Path) -> RowSource:
    import pyarrow
    import pyarrow.parquet

    problems = Problems(str(path), lambda number: f"{path}, row {number}")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        problems.add(
            f"not a Parquet file ({str(error).splitlines()[0]})", "Write the file anew, or check its extension."
        )
        return RowSource(str(path), iter(()), problems, [])

    def rows() -> Rows:
        number = 0
        try:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
        except (pyarrow.ArrowException, OSError) as error:
            problems.add(f"cannot be read on ({str(error).splitlines()[0]})", "Write the file anew.", line=number + 1)

    return RowSource(str(path), rows(), problems, list(file.schema_arrow.names))


READERS: dict[str, Callable[[Path], RowSource]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}


def open_datasets_name(name: str, config: str | None = None) -> dict[str, Any]:
    """The splits of a Datasets name: an id on the hub, a folder of files, or a folder that `save_to_disk` wrote.

    Returns:
        Splits by name, each a `datasets.Dataset`.

    Raises:
        InputError: nothing under that name, a configuration missing or unknown, no network.
    """
    import datasets

    folder = Path(name)
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:
        raise InputError(_why_not_loaded(name, config, folder.exists(), error)) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _why_not_loaded(name: str, config: str | None, is_local: bool, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) and is_local else error
    reason = " ".join(str(cause).split())[:300]
    shown = f"{name!r}" + (f" with configuration {config!r}" if config else "")
    if is_local:
        remedy = (
            "Check that the folder holds .jsonl, .csv or .parquet files named after their split (train, validation, "
            "test), or was written by save_to_disk; or name the files one by one."
        )
    elif "config" in reason.lower():
        remedy = "Name one of its configurations (data_config)."
    elif isinstance(error, ConnectionError):
        remedy = (
            "Without a network give a local folder instead, or files (train_file, validation_file, test_file); a "
            "data set that was loaded once is found again in the cache."
        )
    else:
        remedy = (
            "Check the name (owner/name on the hub, or the path of a folder); a private or gated data set needs `hf "
            "auth login`."
        )
    return f"The data {shown} cannot be loaded: {reason.rstrip('.') or type(error).__name__}. {remedy}"


def open_split(name: str, split: str, dataset: Any, columns: list[str]) -> RowSource:
    """The rows of one split of a Datasets name; row numbers are those of the data set, from 0, so `dataset[number]`."""
    import datasets

    shown = f"{name}[{split}]"
    present = [column for column in columns if column in dataset.column_names]
    class_names = {
        column: list(feature.names)
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    # Problems take 0 for the whole source, so rows count from 1 until they are shown.
    problems = Problems(shown, lambda number: f"{shown}[{number - 1}]")
    rows = enumerate(dataset.select_columns(present), start=1)
    return RowSource(shown, rows, problems, list(dataset.column_names), class_names)
