"""Checks that a source has the columns that the task reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sptune.errors import InputError
from sptune.tasks.data.lookalike_names import lookalike_key, spell_out
from sptune.tasks.data.row_source import RowSource

MAX_SHOWN_COLUMNS = 20


def check_column_names(text_columns: Sequence[str], label_column: str | None) -> tuple[str, ...]:
    """The text columns as a tuple.

    Raises:
        InputError: if there is no text column, or a column is named twice.
    """
    columns = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
    if label_column in columns:
        raise InputError(
            f"The column {label_column!r} is named for both the text and the label (text_columns, label_column); name "
            "another one for either."
        )
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise InputError(f"The column {repeated!r} is named twice (text_columns); name each column once.")
    if not columns:
        raise InputError("No column with text is named; name at least one (text_columns).")
    return columns


# The options that name columns, for messages.
CLASS_COLUMNS = ("text_columns", "label_column")


def report_header(
    source: RowSource, wanted: Sequence[str], columns: Sequence[str], options: Sequence[str] = CLASS_COLUMNS
) -> bool:
    """Report wanted columns that a header or schema lacks or repeats; returns whether there are any.

    Args:
        source: receives the errors.
        wanted: the columns to read.
        columns: those of the header or schema.
        options: those that name columns.
    """
    missing = [column for column in wanted if column not in columns]
    repeated = [column for column in wanted if columns.count(column) > 1]
    if not columns and not source.errors.count:
        source.errors.add("empty: it has no header", "Add a line with the column names, then the data.")
    elif columns:
        for column in missing:
            source.errors.add(
                f"no column {column!r}; found {_list_columns(columns)}", _column_remedy(columns, column, options)
            )
    for column in repeated:
        source.errors.add(
            f"{columns.count(column)} columns have the name {column!r}", "Rename those that should not be read."
        )
    return bool(missing or repeated)


def report_missing_fields(
    source: RowSource,
    missing: Mapping[str, Sequence[int]],
    count: int,
    seen: Sequence[str],
    options: Sequence[str] = CLASS_COLUMNS,
) -> None:
    """Report JSON objects without a wanted field.

    Args:
        source: receives the errors.
        missing: the lines that lack a field, by column.
        count: the number of rows.
        seen: all fields that occur.
        options: those that name columns.
    """
    seen = source.columns or seen
    for column, lines in missing.items():
        if count and len(lines) == count:
            source.errors.add(
                f"no line has a field {column!r}; found {_list_columns(seen)}",
                _column_remedy(seen, column, options),
            )
            continue
        for line in lines:
            source.errors.add(
                "missing, although other lines have it", "Add it, or remove the line.", line=line, field=column
            )


def _list_columns(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:MAX_SHOWN_COLUMNS])
    more = len(columns) - MAX_SHOWN_COLUMNS
    return f"{shown} and {more} more" if more > 0 else shown


def _column_remedy(columns: Sequence[str], wanted: str, options: Sequence[str]) -> str:
    lookalike = next((column for column in columns if lookalike_key(column) == lookalike_key(wanted)), None)
    if lookalike is not None:
        return f"{spell_out(lookalike, wanted)} looks like it: use {spell_out(wanted, lookalike)} in both places."
    separator = next((one for one in ";\t|," if len(columns) == 1 and one in columns[0]), None)
    if separator is not None:
        remedy = "Another character seems to separate the columns; save as .csv with commas or as .tsv with tabs"
        return f"{remedy}, or add a line 'sep={separator}' before the header."
    remedy = f"Name the right column ({', '.join(options)}). A CSV or TSV file names its columns in its first line."
    if options is CLASS_COLUMNS and ({"prompt", "completion"} <= set(columns) or "messages" in columns):
        remedy += " For a model that writes text, add task_kind='generate'."
    return remedy
