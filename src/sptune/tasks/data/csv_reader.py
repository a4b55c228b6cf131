"""Reads rows from CSV and TSV files. All values stay text: numbers, dates and missing values are not interpreted."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sptune.tasks.data.error_report import ErrorReport, shorten
from sptune.tasks.data.row_source import Rows, RowSource
from sptune.tasks.data.text_lines import read_lines

# The limit of the csv module, for all of the process, is 131,072 characters a value.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class _Dialect:
    """How the values of a file are separated.

    Attributes:
        delimiter: the character between two values.
        quoting: a `QUOTE_` constant of the csv module.
        skipped_lines: the number of lines before the header.
    """

    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL
    skipped_lines: int = 0


def open_separated_values(path: Path, delimiter: str) -> RowSource:
    """The rows of a CSV or TSV file, whose first line names the columns."""
    errors, notes = ErrorReport(str(path)), list[str]()
    dialect = _Dialect(delimiter)
    if declared := _declared_delimiter(path):
        dialect = _Dialect(declared, skipped_lines=1)
        notes.append(f"{path}: values are separated by {declared!r}, as its first line says (Excel's sep= line).")
    if dialect.delimiter == "\t" and not _has_consistent_quotes(path, dialect):
        dialect = replace(dialect, quoting=csv.QUOTE_NONE)
    records = _records(path, errors, dialect, notes)
    _, header = next(records, (0, []))
    columns = [name.strip() for name in header]
    while columns and not columns[-1]:  # empty columns of a spreadsheet
        columns.pop()
    rows = _rows(records, header, columns, dialect.delimiter, errors, notes)
    return RowSource(str(path), rows, errors, columns, notes=notes)


def _rows(
    records: Iterator[tuple[int, list[str]]],
    header: list[str],
    columns: list[str],
    delimiter: str,
    errors: ErrorReport,
    notes: list[str],
) -> Rows:
    """Yield the records with the right number of values and report the others."""
    is_noted = False
    for number, values in records:
        unnamed = [value for value in values[len(columns) :] if value.strip()]
        if not len(columns) <= len(values) <= len(header):
            errors.add(
                f"{_count(values, 'value')}, but the header names {_count(columns, 'column')} ({', '.join(columns)})",
                "Add the missing values, or remove the line."
                if len(values) < len(columns)
                else _width_remedy(delimiter, only_blanks_added=not unnamed),
                line=number,
            )
            continue
        if unnamed and not is_noted:
            is_noted = True
            notes.append(
                f"{errors.locate(number)}: {shorten(unnamed[0])} is in a column without a name and is ignored."
            )
        yield number, dict(zip(columns, values, strict=False))


def _count(things: Sequence[str], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _declared_delimiter(path: Path) -> str | None:
    """The delimiter of a line such as `sep=;` before the header, which Excel understands."""
    first_line = next(read_lines(path, ErrorReport(str(path))), "")
    declaration = re.fullmatch(r'"?sep=([^"\r\n])"?[\s,;]*', first_line, re.IGNORECASE)
    return declaration[1] if declaration else None


def _width_remedy(delimiter: str, only_blanks_added: bool) -> str:
    name = {",": "commas", "\t": "tabs", ";": "semicolons"}.get(delimiter, repr(delimiter))
    if only_blanks_added:
        return f"Remove the {name} at the end of the line, or end the header with the same number."
    return f'Put text that contains {name} or line breaks in quotation marks, and write "" for one inside.'


def _records(
    path: Path, errors: ErrorReport, dialect: _Dialect, notes: list[str] | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line on which it starts, except blank lines and, at the end, empty rows of a sheet."""
    lines = itertools.islice(read_lines(path, errors, notes), dialect.skipped_lines, None)
    reader = csv.reader(lines, delimiter=dialect.delimiter, quoting=dialect.quoting, strict=True)  # type: ignore[arg-type]
    start = dialect.skipped_lines + 1
    empty: list[tuple[int, list[str]]] = []
    width = 0
    try:
        for values in reader:
            if any(value.strip() for value in values):
                width = width or len(values)
                yield from empty
                empty.clear()
                yield start, values
            elif len(values) > 1:
                empty.append((start, values))
            elif values and width == 1:  # in a file of more columns it is a line of blanks
                yield start, values
            start = dialect.skipped_lines + reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            errors.add(
                "contains a carriage return outside quotation marks",
                r"Put such text in quotation marks, or replace them by spaces, for example: tr '\r' ' ' < old > new.",
                line=start,
            )
        else:
            errors.add(
                f"cannot be read from here on ({error})",
                'Close every quotation mark that opens, and write "" for one inside quoted text.',
                line=start,
            )


def _has_consistent_quotes(path: Path, dialect: _Dialect) -> bool:
    """Whether all records have as many values as the header if quotation marks enclose values.

    Many TSV files are written without quoting; there a quotation mark is an ordinary character.
    """
    errors = ErrorReport(str(path))
    widths = {len(values) for _, values in _records(path, errors, dialect)}
    return not errors.count and len(widths) <= 1
