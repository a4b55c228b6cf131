"""Checks the set of classes in the training data: their order, number, spelling and frequency."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sptune.errors import InputError
from sptune.tasks.data.label_checks import label_name
from sptune.tasks.data.lookalike_names import lookalike_key, spell_out
from sptune.tasks.splits import Example

MAX_CLASSES = 50  # more labels than this, most with one example, are not classes
MAX_FRACTIONS = 20  # more fractional numbers are scores; so are fewer if half of the examples have their own
MAX_RATINGS = 20  # more whole numbers get a note
MIN_CLASS_SIZE = 5  # a smaller class with less than a tenth of an even share gets a note


@dataclass(frozen=True)
class LabelCounts:
    """The labels of the training examples.

    Attributes:
        examples: the number of examples.
        counts: the number of examples of each label, in the order in which labels first occur.
        places: where each label first occurs.
        max_labels: of one example.
    """

    examples: int
    counts: Counter[str]
    places: dict[str, str]
    max_labels: int

    @classmethod
    def of(cls, examples: Iterable[Example]) -> LabelCounts:
        """The labels of examples with a class or with any number of labels."""
        counts, places, number, most = Counter[str](), dict[str, str](), 0, 0
        for example in examples:
            number += 1
            labels = (example.label,) if isinstance(example.label, str) else example.label or ()
            most = max(most, len(labels))
            for label in labels:
                counts[label] += 1
                places.setdefault(label, example.where)
        return cls(number, counts, places, most)


def check_class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes that the user gave.

    Raises:
        InputError: if there are fewer than two, or a name is repeated.
    """
    names = tuple(label_name(label) for label in labels)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"labels is {', '.join(names) or 'empty'}; give at least two different classes, each once.")
    return names


def order_classes(seen: Collection[str], declared: Sequence[str] | None) -> tuple[str, ...]:
    """The classes that occur: in declared order, else numerical for numbers and alphabetical for names."""
    if declared is not None:
        return tuple(name for name in declared if name in seen)
    numbers = {name: _number(name) for name in seen}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(seen, key=lambda name: (numbers[name], name)))
    return tuple(sorted(seen))


def check_numeric_labels(found: LabelCounts, source: str, column: str, notes: list[str]) -> None:
    """Refuse labels that are scores, and note labels that are many whole numbers.

    A few fractional numbers are classes, such as sections (1.1, 1.10) or half stars. Scores are many, or most of them
    have only one or two examples.

    Raises:
        InputError: if most labels are fractional numbers and they are many.
    """
    labels = found.counts
    numbers = {label: number for label in labels if (number := _written_number(label)) is not None}
    fractions = [label for label, number in numbers.items() if not number.is_integer()]
    are_many = len(fractions) > min(MAX_FRACTIONS, max(found.examples / 2, MIN_CLASS_SIZE))
    if are_many and len(fractions) > len(labels) / 2:
        raise InputError(
            f"{source}, field {column!r}: {len(labels)} different labels in {found.examples} examples, "
            f"{len(fractions)} of them fractional, such as {', '.join(map(repr, fractions[:3]))}. This looks like a "
            "number to predict, not a class. Predict it (task_kind='regression'), name another label column, or "
            "replace the numbers by a few classes, such as low and high; if they are classes, name all of them "
            "(labels=...)."
        )
    if len(numbers) == len(labels) > MAX_RATINGS and not fractions:
        notes.append(
            f"{source}, field {column!r}: {len(labels)} different whole numbers. Each one is a separate class; their "
            "order is not learned. To predict a number, add task_kind='regression'."
        )


def check_classes(found: LabelCounts, source: str, column: str, classes: Sequence[str], notes: list[str]) -> None:
    """Check the number of classes, and note classes without examples.

    Raises:
        InputError: if there is only one class, or almost every example has a label of its own.
    """
    seen = found.counts
    if len(seen) < 2:
        raise InputError(
            f"{source}, field {column!r}, value {next(iter(seen))!r}: all {found.examples} examples have this one "
            "label. A classifier needs at least two classes; add examples of another, or name another label column."
        )
    if len(seen) > MAX_CLASSES and len(seen) > found.examples / 2:
        raise InputError(
            f"{source}, field {column!r}: {len(seen)} different labels in {found.examples} examples, such as "
            f"{next(iter(seen))!r}. This looks like a number to predict or an identifier, not a class; name another "
            "label column."
        )
    notes.extend(note_empty_classes(seen, source, classes))


def note_empty_classes(seen: Collection[str], source: str, classes: Sequence[str]) -> list[str]:
    """One note for each class without examples."""
    return [
        f"The class {name!r} has no examples in {source}: it will not be learned."
        for name in classes
        if name not in seen
    ]


def check_spelling(found: LabelCounts, source: str, column: str) -> None:
    """Refuse classes whose names look alike, for example differ only in case: one of them is usually a typo.

    Args:
        found: the labels of the training data.
        source: the training data, for messages.
        column: the label column.

    Raises:
        InputError: if two names look alike.
    """
    count = found.counts
    spellings: dict[str, str] = {}
    for name in count:
        other = spellings.setdefault(lookalike_key(name), name)
        if other != name:
            rare, common = sorted((name, other), key=lambda one: count[one])
            raise InputError(
                f"{found.places[rare]}, field {column!r}, value {spell_out(rare, common)}: there is also a class "
                f"{spell_out(common, rare)} with {count[common]} examples in {source}; this one has {count[rare]}. "
                "Use one spelling, or, if they are two classes, name all classes (labels=...)."
            )


def note_rare_classes(found: LabelCounts, source: str) -> list[str]:
    """One note for each class with so few examples that it may be a typo and can hardly be learned.

    Args:
        found: the labels of the training data.
        source: the training data, for messages.
    """
    return [
        f"The class {name!r} has {number} of the {found.examples} examples in {source}: it can hardly be learned."
        for name, number in found.counts.items()
        if number < MIN_CLASS_SIZE and number * len(found.counts) * 10 < found.examples
    ]


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _written_number(label: str) -> float | None:
    """The number that a label writes, possibly with a decimal comma and a percent sign."""
    text = label.rstrip("%").strip()
    is_decimal_comma = re.fullmatch(r"[+-]?\d*,(\d{1,2}|\d{4,})", text)
    return _number(text.replace(",", ".") if is_decimal_comma else text)
