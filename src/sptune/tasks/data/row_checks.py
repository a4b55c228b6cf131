"""Checks the rows of a source and turns those without errors into examples."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from sptune.tasks.data.column_checks import CLASS_COLUMNS, report_header, report_missing_fields
from sptune.tasks.data.error_report import NOT_UNICODE, ErrorReport, a_value, or_remove
from sptune.tasks.data.label_checks import check_label, is_missing, report_unknown_labels, report_unlabeled_rows
from sptune.tasks.data.lookalike_names import is_blank, is_unicode
from sptune.tasks.data.row_source import RepeatedValues, RowSource
from sptune.tasks.splits import Example, Label

Checked = TypeVar("Checked")


def check_rows(
    source: RowSource,
    text_columns: Sequence[str],
    label_column: str | None,
    *,
    known_labels: Collection[str] | None = None,
    train_name: str | None = None,
) -> Iterator[Example]:
    """Turn the rows of a source into examples; errors go into `source.errors`.

    Args:
        source: the rows.
        text_columns: the columns with text.
        label_column: the column with the label; None for unlabeled data.
        known_labels: the classes; None to accept any label.
        train_name: the source of the training data, for messages, if the classes were read from it.

    Yields:
        The examples of the rows without errors.
    """
    return checked_examples(_ClassRows(source, text_columns, label_column, known_labels, train_name))


def checked_examples(checker: RowChecker[Checked]) -> Iterator[Checked]:
    """Yield the examples of all rows without errors; errors go into the checker's source."""
    source = checker.source
    if source.columns is not None and report_header(source, checker.columns, source.columns, checker.column_options):
        return
    source.selected = checker.columns
    for line, values in source.rows:
        example = checker.example(line, values)
        if example is not None:
            yield example
    checker.report()


def text_rows(source: RowSource, text_columns: Sequence[str]) -> RowChecker[Example]:
    """What checks rows with texts and no labels."""
    return _ClassRows(source, text_columns, None, None, None)


class RowChecker(abc.ABC, Generic[Checked]):
    """Checks row by row and remembers the errors that one message reports for many rows.

    Args:
        source: the rows.
        columns: the columns that every row must have.

    Attributes:
        column_options: the options that name columns, for messages.
    """

    column_options: Sequence[str] = CLASS_COLUMNS

    def __init__(self, source: RowSource, columns: Sequence[str]) -> None:
        self.source = source
        self.columns = list(columns)
        self.count = 0
        self._seen_columns: dict[str, None] = {}
        self._missing: dict[str, list[int]] = {column: [] for column in self.columns}

    def example(self, line: int, values: Mapping[str, Any]) -> Checked | None:
        """The example of a row; None if the row has an error."""
        self.count += 1
        self._seen_columns.update(dict.fromkeys(values))
        return self.make_example(line, values) if self._has_fields(line, values) else None

    @abc.abstractmethod
    def make_example(self, line: int, values: Mapping[str, Any]) -> Checked | None:
        """The example of a row that has all columns; None if it has an error."""

    def _has_fields(self, line: int, values: Mapping[str, Any]) -> bool:
        """Whether the row has each column exactly once."""
        missing = [column for column in self.columns if column not in values]
        for column in missing:
            self._missing[column].append(line)
        if missing:
            return False
        repeated = [column for column in self.columns if isinstance(values[column], RepeatedValues)]
        for column in repeated:
            self.source.errors.add("occurs more than once in this object", "Keep one of them.", line=line, field=column)
        return not repeated

    def report_missing(self) -> None:
        """Report the columns that rows lack, after the last row."""
        report_missing_fields(self.source, self._missing, self.count, list(self._seen_columns), self.column_options)

    def report(self) -> None:
        """Report the errors that concern many rows, after the last row."""
        if not self.count:
            report_no_rows(self.source)
        self.report_missing()


class LabeledRows(RowChecker[Example[Label]]):
    """Checks rows with texts and, unless `label_column` is None, what is predicted."""

    def __init__(self, source: RowSource, text_columns: Sequence[str], label_column: str | None) -> None:
        super().__init__(source, [*text_columns, *([] if label_column is None else [label_column])])
        if label_column is None:
            self.column_options = ("text_columns",)
        self.text_columns = text_columns
        self.label_column = label_column

    def make_example(self, line: int, values: Mapping[str, Any]) -> Example[Label] | None:
        """Its texts and label."""
        errors = self.source.errors
        texts = {column: check_text(values[column], column, line, errors) for column in self.text_columns}
        fields = {column: text for column, text in texts.items() if text is not None}
        column = self.label_column
        label = None if column is None else self.read_label(line, values[column], column)
        if len(fields) < len(texts) or (label is None and column is not None):
            return None
        return Example(fields, label, errors.locate(line))

    @abc.abstractmethod
    def read_label(self, line: int, value: Any, column: str) -> Label | None:
        """What is predicted; None if it is missing or wrong."""


class _ClassRows(LabeledRows[str]):
    """Checks rows with texts and, unless `label_column` is None, a class; see `check_rows`."""

    def __init__(
        self,
        source: RowSource,
        text_columns: Sequence[str],
        label_column: str | None,
        known_labels: Collection[str] | None,
        train_name: str | None,
    ) -> None:
        super().__init__(source, text_columns, label_column)
        self.known_labels = known_labels
        self.train_name = train_name
        self._unlabeled: list[tuple[int, Any]] = []
        self._unknown: list[tuple[int, str]] = []

    def read_label(self, line: int, value: Any, column: str) -> str | None:
        """The class name of a label; None if it is missing, unknown or not a label."""
        class_names = self.source.class_names.get(column)
        if is_missing(value, class_names):
            self._unlabeled.append((line, value))
            return None
        label = check_label(value, column, class_names, line, self.source.errors)
        if label is not None and self.known_labels is not None and label not in self.known_labels:
            self._unknown.append((line, label))
            return None
        return label

    def report(self) -> None:
        """Also report missing and unknown labels."""
        super().report()
        if self.label_column is not None:
            errors, column = self.source.errors, self.label_column
            report_unlabeled_rows(errors, self._unlabeled, self.count, column)
            report_unknown_labels(errors, self._unknown, self.count, column, self.known_labels or (), self.train_name)


def report_no_rows(source: RowSource) -> None:
    """Report that a source has no rows, unless it has other errors."""
    if not source.errors.count:
        source.errors.add(
            "empty: it has a header but no rows" if source.columns else "empty: it has no examples",
            "Add at least one example, or leave the file out.",
        )


def check_text(value: Any, column: str, line: int, errors: ErrorReport) -> str | None:
    """A text; None, and an error in the report, if it is blank or not text."""
    if value is None or (isinstance(value, str) and is_blank(value)):
        error, remedy = "empty text", or_remove("Write the text", line)
    elif not isinstance(value, str):
        error = f"{a_value(value)}, not text"
        remedy = "Name a column that holds text, or put the value in quotation marks."
    elif not is_unicode(value):
        error, remedy = NOT_UNICODE
    else:
        return value
    errors.add(error, remedy, line=line, field=column, value=value)
    return None
