"""Checks the text of one request, as rows of a file are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sptune.errors import InputError
from sptune.tasks.data.error_report import ErrorReport, raise_errors
from sptune.tasks.data.named_rows import row_checker
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.generation_task import GenerationTask
from sptune.tasks.task import Task

Text = str | Mapping[str, str] | Sequence[Mapping[str, str]]


def check_request(text: Text, task: Task | GenerationTask, where: str) -> Any:
    """Turn the text of a request into an example.

    Args:
        text: the text or prompt; for a task with several text columns the text of each; for a chat its messages.
        task: of the adapter.
        where: the request, for messages.

    Returns:
        An `Example`, or a `GenerationExample` if the task is to write.

    Raises:
        InputError: a column is missing or unknown, or a text is empty.
    """
    errors = ErrorReport(where)
    checker = row_checker(RowSource(where, iter(()), errors), task)
    wanted = ", ".join(map(repr, checker.columns))
    if not isinstance(text, Mapping):
        if len(checker.columns) > 1:
            raise InputError(f"{where}: one text was given, but the adapter reads the columns {wanted}; name them.")
        text = {checker.columns[0]: text}  # type: ignore[dict-item]
    if set(text) != set(checker.columns):
        given = ", ".join(map(repr, text)) or "none"
        raise InputError(f"{where}: the columns {given} were given, but the adapter reads {wanted}; give just these.")
    example = checker.example(0, text)
    raise_errors([errors])
    return example
