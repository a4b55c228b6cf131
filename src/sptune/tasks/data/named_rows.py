"""Reads a file whose rows are for several adapters, which a column names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sptune.tasks.data.column_checks import check_column_names, report_header, report_missing_fields
from sptune.tasks.data.error_report import ErrorReport
from sptune.tasks.data.file_reader import open_file
from sptune.tasks.data.generation_checks import prompt_rows
from sptune.tasks.data.labeled_data import raise_errors_and_log_notes
from sptune.tasks.data.row_checks import RowChecker, report_no_rows, text_rows
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.generation_task import GenerationTask
from sptune.tasks.task import Task

# The option that names the column, for messages.
NAME_COLUMNS = ("adapter_column",)


def read_named(path: str | Path, name_column: str, tasks: Mapping[str, Task | GenerationTask]) -> list[tuple[str, Any]]:
    """Read texts and prompts without answers.

    Args:
        path: the file.
        name_column: the column that names the adapter of each row.
        tasks: the task of each adapter.

    Returns:
        The adapter's name and the example of each row, in the order of the file.

    Raises:
        InputError: all errors of the file in one message.
    """
    source = open_file(path)
    checkers = {name: row_checker(source, task) for name, task in tasks.items()}
    for checker in checkers.values():
        check_column_names([*checker.columns, name_column], None)
    examples = _check_rows(source, name_column, checkers)
    raise_errors_and_log_notes(source)
    return examples


def row_checker(source: RowSource, task: Task | GenerationTask) -> RowChecker[Any]:
    """What checks the rows of a task that have no answers."""
    if isinstance(task, GenerationTask):
        return prompt_rows(source, task, answered=False)
    return text_rows(source, task.text_fields)


def _check_rows(source: RowSource, name_column: str, checkers: Mapping[str, RowChecker[Any]]) -> list[tuple[str, Any]]:
    """The name and the example of each row without errors; errors go into `source.errors`."""
    if source.columns is not None and report_header(source, [name_column], source.columns, NAME_COLUMNS):
        return []
    source.selected = [name_column, *(column for checker in checkers.values() for column in checker.columns)]
    examples = []
    unnamed: list[int] = []
    seen: dict[str, None] = {}
    count = 0
    for count, (line, values) in enumerate(source.rows, start=1):  # noqa: B007
        seen.update(dict.fromkeys(values))
        if name_column not in values:
            unnamed.append(line)
            continue
        name = _check_name(values[name_column], name_column, checkers, line, source.errors)
        example = None if name is None else checkers[name].example(line, values)
        if name is not None and example is not None:
            examples.append((name, example))
    report_missing_fields(source, {name_column: unnamed}, count, list(seen), NAME_COLUMNS)
    for checker in checkers.values():
        checker.report_missing()
    if not examples:
        report_no_rows(source)
    return examples


def _check_name(value: Any, column: str, names: Collection[str], line: int, errors: ErrorReport) -> str | None:
    """One of the names; None, and an error in the report, if it is another value."""
    if isinstance(value, str) and value in names:
        return value
    known = f"Write one of {', '.join(map(repr, names))}, or add --adapter NAME=FOLDER for another."
    if value is None or value == "":
        errors.add("names no adapter", known, line=line, field=column, value=value)
    else:
        errors.add("is not the name of an adapter given", known, line=line, field=column, value=value)
    return None
