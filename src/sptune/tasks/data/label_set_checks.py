"""Checks rows whose examples have any number of labels, and the labels of the training data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sptune.errors import InputError
from sptune.tasks.data.class_checks import (
    MAX_CLASSES,
    LabelCounts,
    check_spelling,
    note_empty_classes,
    note_rare_classes,
)
from sptune.tasks.data.error_report import a_value, or_remove
from sptune.tasks.data.label_checks import check_label, report_unknown_labels
from sptune.tasks.data.lookalike_names import is_blank
from sptune.tasks.data.row_checks import LabeledRows, checked_examples
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.splits import Example
from sptune.tasks.task import DEFAULT_SEPARATOR

LabelSet = tuple[str, ...]
# What other files separate labels by.
SEPARATORS = ";,/"
# A list as Python or JSON writes it.
WRITTEN_LIST = re.compile(r"""\[\s*([\d"'-].*)?\]""", re.DOTALL)


class LabelSetRows(LabeledRows[LabelSet]):
    """Rows with texts and labels: a list, or a text in which a separator stands between labels.

    Args:
        source: the rows.
        text_columns: the columns with text.
        label_column: the column with the labels.
        separator: of a text.
        known_labels: the labels; None to accept any.
        train_name: the source of the training data, for messages, if the labels were read from it.
    """

    def __init__(
        self,
        source: RowSource,
        text_columns: Sequence[str],
        label_column: str,
        separator: str,
        known_labels: Collection[str] | None = None,
        train_name: str | None = None,
    ) -> None:
        super().__init__(source, text_columns, label_column)
        self.separator = separator
        self.known_labels = known_labels
        self.train_name = train_name
        self._unknown: list[tuple[int, str]] = []

    def read_label(self, line: int, value: Any, column: str) -> LabelSet | None:
        """The names of the labels, none for an empty list or a blank text; None if there is an error."""
        names = self._names(line, value, column)
        if names is None:
            return None
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            remedy = "Keep one of them."
            if set(names) <= {"0", "1"}:
                remedy = "If these are 0 and 1 for each label, write the names of the labels that an example has."
            error = f"the label {repeated!r} more than once"
            self.source.errors.add(error, remedy, line=line, field=column, value=value)
            return None
        unknown = [name for name in names if self.known_labels is not None and name not in self.known_labels]
        self._unknown.extend((line, name) for name in unknown)
        return None if unknown else tuple(names)

    def _names(self, line: int, value: Any, column: str) -> list[str] | None:
        parts, errors = self._parts(value), self.source.errors
        if parts is None:
            found = "nothing" if value is None or _is_nan(value) else "an object"
            remedy = (
                'Write a list such as ["a", "b"], or a text such as '
                f"{'a' + self.separator + 'b'!r}; an empty one for an example without labels"
            )
            errors.add(f"{found}, not a list of labels", or_remove(remedy, line), line=line, field=column, value=value)
            return None
        if isinstance(value, str) and WRITTEN_LIST.fullmatch(value.strip()) and value not in (self.known_labels or ()):
            remedy = (
                f"Write {'a' + self.separator + 'b'!r} (nothing for an example without labels), or put a list into "
                "JSON Lines or Parquet."
            )
            errors.add("a list written as text", remedy, line=line, field=column, value=value)
            return None
        nested = next((part for part in parts if isinstance(part, list | tuple | Mapping)), None)
        if nested is not None:
            remedy = 'Write the names or numbers of the labels in one list, such as ["a", "b"].'
            error = f"{a_value(nested)} among the labels"
            errors.add(error, remedy, line=line, field=column, value=value)
            return None
        if any(part is None or _is_nan(part) or (isinstance(part, str) and is_blank(part)) for part in parts):
            remedy = (
                f"Name a label on both sides of each {self.separator!r}." if isinstance(value, str) else "Remove it."
            )
            errors.add("an empty label among others", remedy, line=line, field=column, value=value)
            return None
        class_names = self.source.class_names.get(column)
        names = [check_label(part, column, class_names, line, errors) for part in parts]
        return None if None in names else [name for name in names if name is not None]

    def _parts(self, value: Any) -> list[Any] | None:
        """The labels as they are written; None if the value holds no labels."""
        if isinstance(value, str):
            return [] if is_blank(value) else [part.strip() for part in value.split(self.separator)]
        if isinstance(value, list | tuple):
            return list(value)
        return None if value is None or _is_nan(value) or isinstance(value, Mapping) else [value]

    def report(self) -> None:
        """Also report unknown labels."""
        super().report()
        report_unknown_labels(
            self.source.errors, self._unknown, 0, self.label_column or "", self.known_labels or (), self.train_name
        )


def check_label_sets(
    source: RowSource,
    text_columns: Sequence[str],
    label_column: str,
    *,
    separator: str = DEFAULT_SEPARATOR,
    known_labels: Collection[str] | None = None,
    train_name: str | None = None,
) -> Iterator[Example[LabelSet]]:
    """Turn the rows of a source into examples; errors go into `source.errors`. See `LabelSetRows`."""
    return checked_examples(LabelSetRows(source, text_columns, label_column, separator, known_labels, train_name))


def check_labels(
    found: LabelCounts,
    source: str,
    column: str,
    labels: Sequence[str],
    notes: list[str],
    *,
    separator: str | None,
    are_known: bool,
) -> None:
    """Check the labels of the training data; `notes` receives what is unusual.

    Args:
        found: the labels of the training examples.
        source: the training data, for messages.
        column: the label column.
        labels: all labels.
        notes: receives notes.
        separator: the one that the user chose; None for the default.
        are_known: whether the user or the data declare the labels.

    Raises:
        InputError: there are fewer than two labels, or as many as if they were identifiers, or two look alike, or
            another separator stands in them.
    """
    seen = found.counts
    if separator is None and found.max_labels == 1:
        _check_separator(seen, source, column)
    _check_number(seen, found.examples, source, column)
    if not are_known and len(seen) > MAX_CLASSES and len(seen) > seen.total() / 2:
        raise InputError(
            f"{source}, field {column!r}: {len(seen)} different labels in {found.examples} examples, such as "
            f"{next(iter(seen))!r}. They look like identifiers; name another label column, or all labels (labels=...)."
        )
    if found.max_labels == 1:
        notes.append(
            f"{source}, field {column!r}: no example has more than one label. If no example can have several, "
            "task_kind='classifier' predicts exactly one for each."
        )
    notes.extend(note_empty_classes(seen, source, labels))
    if not are_known:
        check_spelling(found, source, column)
        notes.extend(note_rare_classes(found, source))


def _check_number(seen: Collection[str], examples: int, source: str, column: str) -> None:
    """Refuse fewer than two labels."""
    if len(seen) < 2:
        found = f"have only the label {next(iter(seen))!r}" if seen else "have no label"
        raise InputError(
            f"{source}, field {column!r}: all {examples} examples together {found}. At least two labels are needed; "
            "name another label column (label_column), or add examples."
        )


def _check_separator(seen: Mapping[str, int], source: str, column: str) -> None:
    """Refuse labels that look like several with another separator between them.

    Raises:
        InputError: which one.
    """
    for separator in SEPARATORS:
        joined = [label for label in seen if separator in label]
        parts = Counter(part.strip() for label in joined for part in label.split(separator))
        if any(count > 1 or (part in seen) for part, count in parts.items()):
            raise InputError(
                f"{source}, field {column!r}, value {joined[0]!r}: {separator!r} seems to stand between labels. Say so "
                f"(label_separator={separator!r}); or, if these are whole names, label_separator={DEFAULT_SEPARATOR!r}."
            )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
