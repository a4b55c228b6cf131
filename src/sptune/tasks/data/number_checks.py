"""Checks rows whose examples have a number that is to be predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from sptune.errors import InputError
from sptune.tasks.data.error_report import a_value, or_remove
from sptune.tasks.data.lookalike_names import is_blank
from sptune.tasks.data.row_checks import LabeledRows, checked_examples
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.splits import Example

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


class NumberRows(LabeledRows[float]):
    """Rows with texts and a finite number, also as text."""

    def read_label(self, line: int, value: Any, column: str) -> float | None:
        """The number; None, and an error in the report, if it is none or not finite."""
        problem = self._problem(value)
        if problem is None:
            return float(value)
        self.source.errors.add(problem[0], or_remove(problem[1], line), line=line, field=column, value=value)
        return None

    def _problem(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, and what to write; None if it is a finite number."""
        if value is None or (isinstance(value, str) and is_blank(value)):
            return "no number", "Write one"
        if isinstance(value, str):
            text = value.strip()
            if DECIMAL_COMMA.fullmatch(text):
                return "not a number", f"Write a decimal point ({text.replace(',', '.')}) and no commas"
            if not NUMBER.fullmatch(text):
                return "not a number", "Write digits, such as 3.5, without a unit"
        elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            return f"{a_value(value)}, not a number", "Write digits, such as 3.5"
        return None if _is_finite(value) else ("not a finite number", "Write one")


def check_numbers(source: RowSource, text_columns: Sequence[str], label_column: str) -> Iterator[Example[float]]:
    """Turn the rows of a source into examples; errors go into `source.errors`."""
    return checked_examples(NumberRows(source, text_columns, label_column))


def check_range(train: Sequence[Example[float]], source: str, column: str, *, drawn: bool = False) -> None:
    """Refuse training numbers that have no standard deviation.

    Args:
        train: the training examples.
        source: of the training data, for messages.
        column: the one with the numbers.
        drawn: whether they are what is left of the data after splits were drawn of them.

    Raises:
        InputError: all are equal, or they are too large to compute with.
    """
    mean, deviation = scale_of(train)
    if not (math.isfinite(mean) and math.isfinite(deviation)):
        raise InputError(
            f"{source}, field {column!r}: the numbers are too large to compute their standard deviation; write them in "
            "a larger unit."
        )
    if deviation <= 1e-12 * abs(mean) and drawn:
        raise InputError(
            f"{source}, field {column!r}, value {train[0].label:g}: all {len(train)} examples that were drawn for "
            "training have this one number. Draw more (few_shot), draw others (seed), or give validation and test data."
        )
    if deviation <= 1e-12 * abs(mean):
        raise InputError(
            f"{source}, field {column!r}, value {train[0].label:g}: all {len(train)} examples have this one number. A "
            "regression needs different ones; name another label column (label_column)."
        )


def scale_of(train: Sequence[Example[float]]) -> tuple[float, float]:
    """Mean and standard deviation of the numbers."""
    values = np.fromiter((example.label for example in train), np.float64, len(train))
    with np.errstate(all="ignore"):
        return float(values.mean()), float(values.std())


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
