"""Checks the text of one request, as rows of a file are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sptune.errors import InputError
from sptune.tasks.data.error_report import ErrorReport, raise_errors
from sptune.tasks.data.row_checks import check_text
from sptune.tasks.splits import Example


def check_request(text: str | Mapping[str, str], text_columns: Sequence[str], where: str) -> Example:
    """Turn the text of a request into an example.

    Args:
        text: the text, or for a task with several text columns the text of each.
        text_columns: the task's columns.
        where: the request, for messages.

    Raises:
        InputError: a column is missing or unknown, or a text is empty.
    """
    wanted = ", ".join(map(repr, text_columns))
    if isinstance(text, str):
        if len(text_columns) > 1:
            raise InputError(f"{where}: one text was given, but the adapter reads the columns {wanted}; name them.")
        text = {text_columns[0]: text}
    if set(text) != set(text_columns):
        given = ", ".join(map(repr, text)) or "none"
        raise InputError(f"{where}: the columns {given} were given, but the adapter reads {wanted}; give just these.")
    errors = ErrorReport(where)
    fields = {column: check_text(text[column], column, 0, errors) for column in text_columns}
    raise_errors([errors])
    return Example({column: value or "" for column, value in fields.items()}, None, where)
