"""Checks the label of each row."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

from sptune.tasks.data.error_report import NOT_UNICODE, ErrorReport, a_value
from sptune.tasks.data.lookalike_names import is_blank, is_unicode, lookalike_key, spell_out

MAX_SHOWN_CLASSES = 20


def label_name(value: str | int | float | Decimal) -> str:
    """The class name for a label: stripped, whole numbers without a decimal point, booleans in lower case."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def is_missing(value: Any, class_names: Sequence[str] | None) -> bool:
    """Whether a row has no label. If class names are declared, -1 means no label."""
    if isinstance(value, str):
        return is_blank(value)
    return value is None or _is_nan(value) or (class_names is not None and value == -1)


def check_label(
    value: Any, column: str, class_names: Sequence[str] | None, line: int, errors: ErrorReport
) -> str | None:
    """The class name of a label; None, and an error in the report, if the value is not a label."""
    if class_names is not None and not isinstance(value, list | tuple):
        return _declared_label(value, column, class_names, line, errors)
    if not isinstance(value, str | int | float | Decimal):
        errors.add(
            f"{a_value(value)}, not one class",
            "Write one name or number; for examples with several labels add task_kind='multi_label'.",
            line=line,
            field=column,
            value=value,
        )
        return None
    if isinstance(value, str) and not is_unicode(value):
        errors.add(*NOT_UNICODE, line=line, field=column, value=value)
        return None
    return label_name(value)


def _declared_label(value: Any, column: str, class_names: Sequence[str], line: int, errors: ErrorReport) -> str | None:
    """The label as one of the declared names; text files write an index as text."""
    if isinstance(value, str) and value in class_names:
        return value
    written = [str(index) for index in range(len(class_names))]
    index = written.index(value) if value in written else value
    if isinstance(index, int) and 0 <= index < len(class_names):
        return class_names[index]
    known = _list_classes([f"{number} ({name})" for number, name in enumerate(class_names)])
    errors.add(
        f"not one of the declared classes {known}", _filter_remedy(column, value), line=line, field=column, value=value
    )
    return None


def report_unlabeled_rows(errors: ErrorReport, rows: Sequence[tuple[int, Any]], count: int, column: str) -> None:
    """Report the rows without a label.

    Args:
        errors: receives the errors.
        rows: the line and the value of each.
        count: the number of all rows.
        column: the label column.
    """
    rows = [(line, None if _is_nan(value) else value) for line, value in rows]
    if len(rows) > 1 and len(rows) == count:
        errors.add(
            f"none of its {count} rows has a label",
            "Name the column that holds the class (label_column), or leave these data out if they have none.",
            field=column,
            value=rows[0][1],
        )
        return
    for line, value in rows:
        error, remedy = "no label", "Write the class, or remove the line."
        if isinstance(value, int):
            error, remedy = "no label (-1 means no label among class indices)", _filter_remedy(column, value)
        errors.add(error, remedy, line=line, field=column, value=value)


def report_unknown_labels(
    errors: ErrorReport,
    rows: Sequence[tuple[int, str]],
    count: int,
    column: str,
    known_labels: Collection[str],
    train_name: str | None,
) -> None:
    """Report the rows whose label is not one of the classes.

    Args:
        errors: receives the errors.
        rows: the line and the label of each.
        count: the number of all rows.
        column: the label column.
        known_labels: the classes.
        train_name: the source of the training data, if the classes were read from it.
    """
    known = _list_classes([repr(name) for name in known_labels])
    remedy = "Use the same names or numbers for the classes everywhere, or " + (
        "add examples of it to the training data." if train_name else "name all classes when you train (labels=...)."
    )
    lookalikes = {lookalike_key(name): name for name in known_labels}
    if len(rows) > 1 and len(rows) == count and not any(lookalike_key(label) in lookalikes for _, label in rows):
        names = ", ".join(map(repr, sorted({label for _, label in rows})[:10]))
        fact = f"occurs in the training data ({train_name} has {known})" if train_name else f"is one of {known}"
        errors.add(f"none of its labels ({names}) {fact}", remedy, field=column)
        return
    fact = f"does not occur in the training data ({train_name} has {known})" if train_name else f"is not one of {known}"
    for line, label in rows:
        other = lookalikes.get(lookalike_key(label))
        if other is None:
            errors.add(f"this label {fact}", remedy, line=line, field=column, value=label)
            continue
        error = f"this label {fact}; {spell_out(label, other)} only looks like {spell_out(other, label)}"
        errors.add(error, "Use one spelling.", line=line, field=column, value=label)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _list_classes(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN_CLASSES]) + (", …" if len(names) > MAX_SHOWN_CLASSES else "")


def _filter_remedy(column: str, value: Any) -> str:
    return (
        f"Remove such rows: load the data with the datasets library, data.filter(lambda row: row[{column!r}] != "
        f"{value!r}).save_to_disk(FOLDER), and pass the folder as the dataset."
    )
