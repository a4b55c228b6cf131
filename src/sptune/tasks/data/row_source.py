"""RowSource: the rows of one file or split with their line numbers, before they are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from sptune.tasks.data.error_report import ErrorReport

Rows = Iterator[tuple[int, dict[str, Any]]]


class RepeatedValues(tuple[Any, ...]):
    """The values of a key that occurs more than once in a JSON object."""


@dataclass
class RowSource:
    """The rows of one file or split, read on demand.

    Attributes:
        name: the file or split, as the user named it.
        rows: pairs of line (or row) number and values by column.
        errors: what could not be read so far.
        columns: the columns of the header or schema; None for JSON.
        class_names: for a column of class indices, the names of the classes.
        notes: unusual properties of the file that did not prevent reading it.
        selected: the columns to read; a format that allows it skips the others. None for all.
    """

    name: str
    rows: Rows
    errors: ErrorReport
    columns: list[str] | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    selected: Sequence[str] | None = None


def declared_class_names(features: datasets.Features | None) -> dict[str, list[str]]:
    """The class names that the features of a Hugging Face dataset declare, by column, also of lists of classes."""
    # A list of classes is a Sequence or, in datasets 4, a List.
    declared = {column: getattr(feature, "feature", feature) for column, feature in (features or {}).items()}
    return {column: list(one.names) for column, one in declared.items() if isinstance(one, datasets.ClassLabel)}
