"""Reads rows from JSON Lines files and from JSON files that hold one list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sptune.tasks.data.error_report import ErrorReport, describe_type, shorten
from sptune.tasks.data.row_source import RepeatedValues, Rows, RowSource
from sptune.tasks.data.text_lines import read_lines


def open_json(path: Path) -> RowSource:
    """The rows of a JSON Lines file, or of a file that holds one JSON list of objects."""
    lines = (line.strip() for line in read_lines(path, ErrorReport(str(path))) if line.strip())
    first_line = next(lines, "")
    has_one_line = next(lines, None) is None
    if first_line.startswith("[") or first_line == "{" or (has_one_line and _is_table(_parse(first_line))):
        return _open_single_value(path, first_line)
    return _open_lines(path)


def _open_lines(path: Path) -> RowSource:
    errors, notes = ErrorReport(str(path)), list[str]()

    def values() -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(read_lines(path, errors, notes), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.strip(), object_pairs_hook=_object)
                except (ValueError, RecursionError) as error:
                    _report_syntax(error, line.strip(), number, errors, "Write one complete JSON object on each line.")

    return RowSource(str(path), _objects(values(), errors), errors, notes=notes)


def _open_single_value(path: Path, first_line: str) -> RowSource:
    """The rows of a file that holds one JSON value."""
    errors, notes = ErrorReport(str(path)), list[str]()
    no_rows = RowSource(str(path), iter(()), errors)
    text = "".join(read_lines(path, errors, notes))
    if errors.count:
        return no_rows
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if first_line != "{" and _parse(first_line) is not None:  # one list per line
            return _open_lines(path)
        line = getattr(error, "lineno", 1)
        remedy = "Write each example as one JSON object on its own line, for example: jq -c . old > new."
        _report_syntax(error, text.split("\n")[line - 1], line, errors, remedy)
        return no_rows
    if _is_table(value):
        errors.add(
            f"one JSON object with {shorten(list(value))}, but one object per example is expected",
            _table_remedy(value),
        )
        return no_rows
    entries = value if isinstance(value, list) else [value]
    notes.append(f"{path}: not JSON Lines but one JSON {describe_type(value)}; its entries are counted from 0.")
    errors.locate = lambda number: f"{path}[{number - 1}]"
    return RowSource(str(path), _objects(enumerate(entries, start=1), errors), errors, notes=notes)


def _parse(text: str) -> Any:
    """A JSON value; None if the text is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that keeps all values of a repeated key, where `json` keeps the last."""
    values = dict(pairs)
    if len(values) < len(pairs):
        for key in values:
            same = [value for other, value in pairs if other == key]
            values[key] = RepeatedValues(same) if len(same) > 1 else same[0]
    return values


def _objects(values: Iterable[tuple[int, Any]], errors: ErrorReport) -> Rows:
    """Yield the values that are objects and report the others."""
    for number, value in values:
        if isinstance(value, dict):
            yield number, value
        else:
            errors.add(
                f"a JSON {describe_type(value)}, not an object",
                'Write an object with named fields, such as {"text": "...", "label": "..."}.',
                line=number,
            )


def _is_table(value: Any) -> bool:
    """Whether one JSON object holds all examples, as a list or column by column, and is not itself a conversation."""
    if not isinstance(value, dict) or not value or any(map(_is_conversation, value.values())):
        return False
    return all(isinstance(one, list | dict) for one in value.values())


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and {"role", "content"} <= set(one) for one in value)
    )


def _table_remedy(table: dict[str, Any]) -> str:
    for name, rows in table.items():
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows):
            return f"Write only the list {name!r}, for example: jq -c '.[\"{name}\"][]' old > new."
    return (
        "Write JSON Lines, for example: pandas.DataFrame(json.load(open(old))).to_json(new, orient='records', "
        "lines=True)."
    )


def _report_syntax(error: Exception, text: str, line: int, errors: ErrorReport, remedy: str) -> None:
    column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    errors.add(f"broken JSON{column} ({reason}) in {shorten(text)}", remedy, line=line)
