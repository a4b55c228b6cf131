"""Rows of JSON, CSV, TSV and Parquet files, each with its line or row number.

Text stays the text that the file holds: no number, date or missing value is read into it. What cannot be read is noted
in the source's problems; what the rows say is judged in data.py.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.lines import COMPRESSIONS, decoded_lines
from sptune.tasks.problems import Problems, kind_of, shortened

Rows = Iterator[tuple[int, dict[str, Any]]]

LONGEST_VALUE = 2**31 - 1  # characters in one CSV value; the csv module's own limit is 131,072


class Repeated(tuple[Any, ...]):
    """The values of a name that one JSON object holds more than once."""


@dataclass
class RowSource:
    """Rows with their numbers, read when asked for.

    Attributes:
        name: the file or split, as the user gave it.
        rows: (line or row number, values by column).
        problems: what could not be read so far.
        columns: the columns, where a header or schema names them; None for JSON.
        class_names: for a column of class indices, the names they stand for.
        notes: what is odd about how the file is written, and was read nevertheless.
    """

    name: str
    rows: Rows
    problems: Problems
    columns: list[str] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_file(path: str | Path) -> RowSource:
    """The rows of a file, by its extension.

    Raises:
        InputError: no such file, an extension not known, or a file that cannot be opened.
    """
    path = Path(path)
    reader = READERS.get(format_of(path))
    if not path.exists():
        raise InputError(f"{path}: no such file. Check the path; it is relative to the folder {Path.cwd()}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file. Name a file in it, or give the folder as data.")
    if reader is None:
        raise InputError(
            f"{path}: files ending in {path.suffix or 'nothing'!r} are not read. Known are {', '.join(READERS)}; "
            "rename or convert the file."
        )
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


def format_of(path: Path) -> str:
    """A file's extension, that of a compression left out."""
    return Path(path.stem if path.suffix.lower() in COMPRESSIONS else path.name).suffix.lower()


# JSON


def _json(path: Path) -> RowSource:
    """JSON Lines, or a file that is one JSON list of objects."""
    lines = (line.strip() for line in decoded_lines(path, Problems(str(path))) if line.strip())
    first = next(lines, "")
    is_only_line = next(lines, None) is None
    if first.startswith("[") or first == "{" or (is_only_line and _is_table(_parsed(first))):
        return _whole_json(path, first)
    return _json_lines(path)


def _json_lines(path: Path) -> RowSource:
    problems, notes = Problems(str(path)), list[str]()

    def values() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(decoded_lines(path, problems, notes), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.strip(), object_pairs_hook=_json_object)
                except (ValueError, RecursionError) as error:
                    _report_json(error, line.strip(), number, problems, "Write one complete JSON object on each line.")

    return RowSource(str(path), _json_objects(values(), problems), problems, notes=notes)


def _whole_json(path: Path, first: str) -> RowSource:
    """The rows of a file that is one JSON value; `first` is its first line."""
    problems, notes = Problems(str(path)), list[str]()
    nothing = RowSource(str(path), iter(()), problems)
    text = "".join(decoded_lines(path, problems, notes))
    if problems.count:
        return nothing
    try:
        value = json.loads(text, object_pairs_hook=_json_object)
    except (ValueError, RecursionError) as error:
        if first != "{" and _parsed(first) is not None:  # a list on each line
            return _json_lines(path)
        line = getattr(error, "lineno", 1)
        remedy = "Write each example as one JSON object on a line of its own, for example: jq -c . old > new."
        _report_json(error, text.split("\n")[line - 1], line, problems, remedy)
        return nothing
    if _is_table(value):
        problems.add(
            f"one JSON object with {shortened(list(value))}, where one object for each example is expected",
            _table_remedy(value),
        )
        return nothing
    entries = value if isinstance(value, list) else [value]
    notes.append(f"{path}: not JSON Lines but one JSON {kind_of(value)}; its entries are counted from 0.")
    problems.place = lambda number: f"{path}[{number - 1}]"
    return RowSource(str(path), _json_objects(enumerate(entries, start=1), problems), problems, notes=notes)


def _parsed(text: str) -> Any:
    """A JSON value; None if it is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that stands in it twice, json itself keeps the last value only."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for name in values:
            same = [value for other, value in pairs if other == name]
            values[name] = Repeated(same) if len(same) > 1 else same[0]
    return values


def _json_objects(values: Iterable[tuple[int, Any]], problems: Problems) -> Rows:
    """The values that are objects; the others are noted."""
    for number, value in values:
        if isinstance(value, dict):
            yield number, value
        else:
            problems.add(
                f"a JSON {kind_of(value)}, not an object",
                'Write an object with names, such as {"text": "...", "label": "..."}.',
                line=number,
            )


def _is_table(value: Any) -> bool:
    """Whether a JSON value is an object that holds all examples: in a list, or column by column."""
    return isinstance(value, dict) and bool(value) and all(isinstance(one, list | dict) for one in value.values())


def _table_remedy(table: dict[str, Any]) -> str:
    for name, rows in table.items():
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows):
            return f"Write the list {name!r} alone, for example: jq -c '.[\"{name}\"][]' old > new."
    return (
        "Write JSON Lines, for example: pandas.DataFrame(json.load(open(old))).to_json(new, orient='records', "
        "lines=True)."
    )


def _report_json(error: Exception, text: str, line: int, problems: Problems, remedy: str) -> None:
    where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    problems.add(f"broken JSON{where} ({reason}) in {shortened(text)}", remedy, line=line)


# CSV and TSV


@dataclass(frozen=True)
class _Dialect:
    """How the values of a file are separated.

    Attributes:
        delimiter: what stands between two values.
        quoting: of the csv module.
        skipped: how many lines stand before the header.
    """

    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL
    skipped: int = 0


def _separated(path: Path, delimiter: str) -> RowSource:
    problems, notes = Problems(str(path)), list[str]()
    dialect = _Dialect(delimiter)
    if said := _said_delimiter(path):
        dialect = _Dialect(said, skipped=1)
        notes.append(f"{path}: its values are separated by {said!r}, as its first line says (Excel's sep= line).")
    if dialect.delimiter == "\t" and not _quotes_are_consistent(path, dialect):
        dialect = replace(dialect, quoting=csv.QUOTE_NONE)
    records = _records(path, problems, dialect, notes)
    _, header = next(records, (0, []))
    columns = [name.strip() for name in header]
    while columns and not columns[-1]:  # empty columns of a spreadsheet
        columns.pop()

    def rows() -> Rows:
        is_noted = False
        for number, values in records:
            beyond = [value for value in values[len(columns) :] if value.strip()]
            if not len(columns) <= len(values) <= len(header):
                problems.add(
                    f"{len(values)} values where the header names {len(columns)} columns ({', '.join(columns)})",
                    _width_remedy(dialect.delimiter, is_blank_beyond=len(values) > len(header) and not beyond),
                    line=number,
                )
                continue
            if beyond and not is_noted:
                is_noted = True
                notes.append(
                    f"{problems.place(number)}: {shortened(beyond[0])} is in a column without a name: not read."
                )
            yield number, dict(zip(columns, values, strict=False))

    return RowSource(str(path), rows(), problems, columns, notes=notes)


def _said_delimiter(path: Path) -> str | None:
    """The delimiter that a line before the header names, such as `sep=;`, for Excel."""
    first = next(decoded_lines(path, Problems(str(path))), "")
    said = re.fullmatch(r'"?sep=([^"\r\n])"?[\s,;]*', first, re.IGNORECASE)
    return said[1] if said else None


def _width_remedy(delimiter: str, is_blank_beyond: bool) -> str:
    name = {",": "commas", "\t": "tabs", ";": "semicolons"}.get(delimiter, repr(delimiter))
    if is_blank_beyond:
        return f"Take the {name} at the end of the line out, or end the header in as many."
    return f'Put text that holds {name} or line breaks in quotation marks, and write "" for one inside.'


def _records(
    path: Path, problems: Problems, dialect: _Dialect, notes: list[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The records of a file, blank lines left out, each with the line it starts on."""
    most = csv.field_size_limit(LONGEST_VALUE)
    lines = itertools.islice(decoded_lines(path, problems, notes), dialect.skipped, None)
    reader = csv.reader(lines, delimiter=dialect.delimiter, quoting=dialect.quoting, strict=True)  # type: ignore[arg-type]
    start = dialect.skipped + 1
    try:
        for values in reader:
            if values and any(value.strip() for value in values):
                yield start, values
            start = dialect.skipped + reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            problems.add(
                "holds a carriage return outside quotation marks",
                r"Put such text in quotation marks, or make spaces of them, for example: tr '\r' ' ' < old > new.",
                line=start,
            )
        else:
            problems.add(
                f"cannot be read on from here ({error})",
                'Close every quotation mark that opens, and write "" for one inside quoted text.',
                line=start,
            )
    finally:
        csv.field_size_limit(most)


def _quotes_are_consistent(path: Path, dialect: _Dialect) -> bool:
    """Whether a file read with quotation marks has the header's number of values in every record.

    Many tab-separated files are written without quoting: there a quotation mark is only a character.
    """
    silent = Problems(str(path))
    widths = {len(values) for _, values in _records(path, silent, dialect)}
    return not silent.count and len(widths) <= 1


# Parquet


def _parquet(path: Path) -> RowSource:
    import datasets
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

    schema = file.schema_arrow
    # Datasets writes down in its own files what the indices of classes stand for.
    features = datasets.Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else None
    return RowSource(str(path), rows(), problems, list(schema.names), class_names(features))


def class_names(features: Any) -> dict[str, list[str]]:
    """The names of the classes that Datasets' features declare, by column."""
    import datasets

    columns = (features or {}).items()
    return {column: list(feature.names) for column, feature in columns if isinstance(feature, datasets.ClassLabel)}


READERS: dict[str, Callable[[Path], RowSource]] = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
