"""Examples and their training, validation and test splits: stratified by label, seeded, without overlap."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

from sptune.errors import InputError
from sptune.stratified import allot

TEST_SHARE = Fraction(1, 5)
VALIDATION_SHARE = Fraction(1, 10)
MAX_VALIDATION = 5000
FEW_SHOT_VALIDATION = 1000


Label = TypeVar("Label", str, tuple[str, ...], float)


@dataclass(frozen=True)
class Example(Generic[Label]):
    """One text or text pair.

    Attributes:
        fields: the text of each text column.
        label: the name of the class, the names of any number of labels, or a number; None if it is unknown.
        where: the location in the data, such as "train.jsonl:17".
        rarest_label: of several labels, the one that fewest of the data have; see `with_rarest_labels`.
    """

    fields: dict[str, str]
    label: Label | None
    where: str
    rarest_label: str | None = None

    @property
    def stratum(self) -> Hashable:
        """The group within which splits are drawn: the class, or a tuple of the rarest label; numbers have none."""
        if isinstance(self.label, float):
            return None
        return (self.rarest_label,) if isinstance(self.label, tuple) else self.label

    @property
    def text(self) -> Hashable:
        """The input, which should not occur in two splits."""
        return tuple(self.fields.values())


def with_rarest_labels(examples: Sequence[Example[tuple[str, ...]]]) -> list[Example[tuple[str, ...]]]:
    """The examples with their rarest labels, so that rare labels are in all splits.

    Splits can be in proportion to one thing only: two examples seldom have just the same labels. Of equally rare labels
    the first in the alphabet counts.
    """
    counts = Counter(label for example in examples for label in example.label or ())
    return [
        replace(example, rarest_label=min(example.label or (), key=lambda label: (counts[label], label), default=None))
        for example in examples
    ]


class SplitExample(Protocol):
    """An example of any kind of task, as far as splits depend on it."""

    @property
    def where(self) -> str:
        """The location in the data."""

    @property
    def stratum(self) -> Hashable:
        """The group within which splits are drawn; None if there are no groups."""

    @property
    def text(self) -> Hashable:
        """The input, which should not occur in two splits."""


AnyExample = TypeVar("AnyExample", bound=SplitExample)


@dataclass
class Splits(Generic[AnyExample]):
    """The data of a run.

    Attributes:
        train: the examples for training and for the search.
        validation: the examples for choosing between models.
        test: the examples for the final evaluation.
        notes: which splits were split off from others, and warnings about the data.
    """

    train: list[AnyExample]
    validation: list[AnyExample]
    test: list[AnyExample]
    notes: list[str] = field(default_factory=list)


def split_stratified(
    labels: Sequence[Hashable], size: int | float | Fraction, *, seed: int, keep: int = 1
) -> tuple[list[int], list[int]]:
    """Split off examples in proportion to the classes.

    Args:
        labels: the label of each example.
        size: the number of examples to split off, or their fraction of all examples as a float or `Fraction`.
        seed: the seed of the random choice.
        keep: the minimum number of examples of each class that remain.

    Returns:
        The remaining indices and the indices split off, both ascending. Because of `keep`, the latter can be fewer than
        `size`.
    """
    number = round(len(labels) * size) if isinstance(size, float | Fraction) else size
    counts = Counter(labels)
    taken = _draw(
        labels, _allot(counts, number, {label: max(count - keep, 0) for label, count in counts.items()}), seed
    )
    return [index for index in range(len(labels)) if index not in taken], sorted(taken)


def few_shot(examples: Sequence[AnyExample], count: int, *, seed: int) -> tuple[list[AnyExample], list[AnyExample]]:
    """Draw `count` examples in all, in proportion to the classes, with at least one of each class.

    Args:
        examples: the training examples.
        count: the number of examples to draw.
        seed: the seed of the random choice.

    Returns:
        The drawn examples and the others, in the order of the data.

    Raises:
        InputError: if there are fewer examples or more classes than `count`.
    """
    labels: list[Hashable] = [example.stratum for example in examples]
    counts = Counter(labels)
    if not len(counts) <= count <= len(examples):
        kind = "groups by rarest label" if any(isinstance(one, tuple) for one in counts) else "classes"
        of_classes = "" if None in counts else f" of {len(counts)} {kind}"
        raise InputError(
            f"few_shot={count} does not fit: there are {len(examples)} training examples{of_classes}. "
            f"Choose a number from {len(counts)} to {len(examples)}."
        )
    drawn = _draw(labels, _allot(counts, count, dict(counts), least=1), seed)
    return (
        [example for index, example in enumerate(examples) if index in drawn],
        [example for index, example in enumerate(examples) if index not in drawn],
    )


def _allot(
    counts: Mapping[Hashable, int], number: int, most: Mapping[Hashable, int], least: int = 0
) -> dict[Hashable, int]:
    """Divide `number` among the classes in proportion, by largest remainders, within `least` and `most` per class."""
    total = sum(counts.values())
    order = sorted(counts, key=str)
    shares = [Fraction(number * counts[label], max(total, 1)) for label in order]
    return dict(zip(order, allot(shares, number, [most[label] for label in order], least), strict=True))


def _draw(labels: Sequence[Hashable], numbers: Mapping[Hashable, int], seed: int) -> set[int]:
    generator = random.Random(seed)
    places: dict[Hashable, list[int]] = {label: [] for label in sorted(numbers, key=str)}
    for index, label in enumerate(labels):
        places[label].append(index)
    return {index for label, indices in places.items() for index in generator.sample(indices, numbers[label])}


def divide(
    examples: Mapping[str, list[AnyExample]],
    *,
    few_shot_count: int | None,
    seed: int,
    source: str,
    notes: Sequence[str] = (),
) -> Splits[AnyExample]:
    """Complete the three splits; missing ones are split off from the training data.

    By default, a fifth of the training data becomes the test split and a tenth the validation split. With
    `few_shot_count`, that many examples are for training and 1,000 of the others for validation; the rest is the test
    split. A text that occurs in the training split is never split off.

    Args:
        examples: the data by role: "train" and, unless they are to be split off, "validation" and "test".
        few_shot_count: the number of training examples, or None for all.
        seed: the seed of all random choices.
        source: the name of the training data, for messages.
        notes: on the data, which come before those on the splits.

    Returns:
        The splits.

    Raises:
        InputError: if there are too few examples.
    """
    train, validation, test = examples["train"], examples.get("validation"), examples.get("test")
    if few_shot_count is None:
        splits = _divide_all(train, validation, test, seed, source)
    else:
        splits = _divide_few_shot(train, validation, test, few_shot_count, seed, source)
    for name, split in (("validation", splits.validation), ("test", splits.test)):
        splits.notes.extend(_weaknesses(name, split, splits.train))
    splits.notes[:0] = notes
    return splits


def _divide_all(
    train: list[AnyExample], validation: list[AnyExample] | None, test: list[AnyExample] | None, seed: int, source: str
) -> Splits[AnyExample]:
    notes: list[str] = []
    whole = len(train)
    if test is None:
        train, test = _split_off(train, TEST_SHARE, seed, "test", source, notes)
    if validation is None:
        size = min(round(whole * VALIDATION_SHARE), MAX_VALIDATION)
        train, validation = _split_off(train, size, seed, "validation", source, notes)
    return Splits(train, validation, test, notes)


def _divide_few_shot(
    train: list[AnyExample],
    validation: list[AnyExample] | None,
    test: list[AnyExample] | None,
    count: int,
    seed: int,
    source: str,
) -> Splits[AnyExample]:
    train, pool = few_shot(train, count, seed=seed)
    _, pool = _repeats(train, pool)
    notes = [f"Training on {len(train)} examples of {source}, drawn {_how_drawn(train)}."]
    if validation is None:
        most = len(pool) if test is not None else len(pool) // 2
        pool, validation = _split_off(pool, min(FEW_SHOT_VALIDATION, most), seed, "validation", source, notes, keep=0)
    if test is None:
        test = pool
        _need(test, "test", source, count)
        notes.append(f"The test data are the {len(test)} remaining examples of {source}.")
    return Splits(train, validation, test, notes)


def _split_off(
    examples: list[AnyExample],
    size: int | Fraction,
    seed: int,
    name: str,
    source: str,
    notes: list[str],
    keep: int = 1,
) -> tuple[list[AnyExample], list[AnyExample]]:
    stay, taken = split_stratified([example.stratum for example in examples], size, seed=seed, keep=keep)
    rest = [examples[index] for index in stay]
    repeated, split = _repeats(rest, [examples[index] for index in taken])
    rest.extend(repeated)
    _need(split, name, source, None)
    notes.append(f"No {name} data given: {len(split)} examples of {source} were split off, {_how_drawn(split)}.")
    return rest, split


def _how_drawn(examples: Sequence[SplitExample]) -> str:
    if any(isinstance(example.stratum, tuple) for example in examples):
        return "in proportion to the rarest label of each"
    grouped = any(example.stratum is not None for example in examples)
    return "in proportion to the classes" if grouped else "at random"


def _weaknesses(name: str, examples: list[AnyExample], train: list[AnyExample]) -> list[str]:
    """Notes on a split whose scores mislead: it shares texts with the training data, or all labels are the same."""
    notes: list[str] = []
    repeated, _ = _repeats(train, examples)
    if repeated:
        notes.append(
            f"{len(repeated)} of {len(examples)} {name} texts also occur in the training data (the first: "
            f"{repeated[0].where}): the {name} score is too optimistic."
        )
    labels = {example.label for example in examples if isinstance(example, Example)}
    if len(labels) == 1 and (only := labels.pop()) is not None:
        same = f"are of the class {only!r}" if isinstance(only, str) else f"have the number {only}"
        same = f"have the labels {list(only)}" if isinstance(only, tuple) else same
        notes.append(f"All {len(examples)} {name} examples {same}: scores mean little.")
    return notes


def _need(examples: list[AnyExample], name: str, source: str, few_shot_count: int | None) -> None:
    if not examples:
        after = f" after few_shot={few_shot_count}" if few_shot_count else ""
        raise InputError(
            f"{source} has too few examples{after} to split off {name} data. Give {name} data ({name}_file), or more "
            "training data."
        )


def _repeats(train: list[AnyExample], examples: list[AnyExample]) -> tuple[list[AnyExample], list[AnyExample]]:
    """The examples whose texts also occur in the training data, and the others."""
    texts = {example.text for example in train}
    repeated = [example for example in examples if example.text in texts]
    return repeated, [example for example in examples if example.text not in texts]
