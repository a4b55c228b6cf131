"""Examples and their training, validation and test splits: stratified by label, seeded, without overlap."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Generic, TypeVar

import numpy as np

from sptune.errors import InputError
from sptune.stratified import allot
from sptune.tasks.example_pool import AnyExample, ExamplePool, Strata
from sptune.tasks.stored_examples import StoredExamples

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
        """The input, which should not occur in two splits; blanks around a text are no part of it."""
        return tuple(text.strip() for text in self.fields.values())


def with_rarest_labels(
    examples: Iterable[Example[tuple[str, ...]]], counts: Mapping[str, int]
) -> Iterator[Example[tuple[str, ...]]]:
    """The examples with their rarest labels, so that rare labels are in all splits.

    Splits can be in proportion to one thing only: two examples seldom have just the same labels. Of equally rare labels
    the first in the alphabet counts.

    Args:
        examples: the training examples.
        counts: how many of them have a label.
    """
    for example in examples:
        rarest = min(example.label or (), key=lambda label: (counts[label], label), default=None)
        yield replace(example, rarest_label=rarest)


@dataclass
class Splits(Generic[AnyExample]):
    """The data of a run.

    Attributes:
        train: the examples for training and for the search.
        validation: the examples for choosing between models.
        test: the examples for the final evaluation.
        notes: which splits were split off from others, and warnings about the data.
    """

    train: StoredExamples[AnyExample]
    validation: StoredExamples[AnyExample]
    test: StoredExamples[AnyExample]
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
    is_taken = _take(Strata.of(labels), size, seed, keep)
    return np.flatnonzero(~is_taken).tolist(), np.flatnonzero(is_taken).tolist()


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
    is_drawn = _take_few(Strata.of(example.stratum for example in examples), count, seed).tolist()
    return (
        [example for example, drawn in zip(examples, is_drawn, strict=True) if drawn],
        [example for example, drawn in zip(examples, is_drawn, strict=True) if not drawn],
    )


def _take(strata: Strata, size: int | float | Fraction, seed: int, keep: int) -> np.ndarray:
    """Whether each example is split off; see `split_stratified`."""
    number = round(len(strata.codes) * size) if isinstance(size, float | Fraction) else size
    counts = strata.counts()
    most = {group: max(count - keep, 0) for group, count in counts.items()}
    return _draw(strata, _allot(counts, number, most), seed)


def _take_few(strata: Strata, count: int, seed: int) -> np.ndarray:
    """Whether each example is drawn; see `few_shot`."""
    counts, examples = strata.counts(), len(strata.codes)
    if not len(counts) <= count <= examples:
        kind = "groups by rarest label" if any(isinstance(one, tuple) for one in counts) else "classes"
        of_classes = "" if None in counts else f" of {len(counts)} {kind}"
        raise InputError(
            f"few_shot={count} does not fit: there are {examples} training examples{of_classes}. "
            f"Choose a number from {len(counts)} to {examples}."
        )
    return _draw(strata, _allot(counts, count, counts, least=1), seed)


def _allot(
    counts: Mapping[Hashable, int], number: int, most: Mapping[Hashable, int], least: int = 0
) -> dict[Hashable, int]:
    """Divide `number` among the classes in proportion, by largest remainders, within `least` and `most` per class."""
    total = sum(counts.values())
    order = sorted(counts, key=str)
    shares = [Fraction(number * counts[label], max(total, 1)) for label in order]
    return dict(zip(order, allot(shares, number, [most[label] for label in order], least), strict=True))


def _draw(strata: Strata, numbers: Mapping[Hashable, int], seed: int) -> np.ndarray:
    """Whether each example is among the `numbers` of its group that are drawn at random."""
    generator = random.Random(seed)
    is_drawn = np.zeros(len(strata.codes), dtype=bool)
    for group in sorted(numbers, key=str):
        places = np.flatnonzero(strata.codes == strata.groups.index(group))
        is_drawn[places[generator.sample(range(len(places)), numbers[group])]] = True
    return is_drawn


def divide(
    examples: Mapping[str, StoredExamples[AnyExample]],
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
    pools = {role: ExamplePool.of(own) for role, own in examples.items()}
    notes = list(notes)
    if few_shot_count is None:
        pools = _divide_all(pools, seed, source, notes)
    else:
        pools = _divide_few_shot(pools, few_shot_count, seed, source, notes)
    for name in ("validation", "test"):
        notes.extend(_weaknesses(name, pools[name], pools["train"]))
    return Splits(pools["train"].examples, pools["validation"].examples, pools["test"].examples, notes)


Pools = dict[str, ExamplePool[AnyExample]]


def _divide_all(pools: Pools[AnyExample], seed: int, source: str, notes: list[str]) -> Pools[AnyExample]:
    pools = dict(pools)
    whole = len(pools["train"])
    sizes: dict[str, int | Fraction] = {
        "test": TEST_SHARE, "validation": min(round(whole * VALIDATION_SHARE), MAX_VALIDATION)
    }  # fmt: skip
    for name, size in sizes.items():
        if name not in pools:
            pools["train"], pools[name] = _split_off(pools["train"], size, seed, name, source, notes)
    return pools


def _divide_few_shot(
    pools: Pools[AnyExample], count: int, seed: int, source: str, notes: list[str]
) -> Pools[AnyExample]:
    pool, train = pools["train"].divide(_take_few(pools["train"].strata, count, seed))
    pool, _ = pool.divide(pool.repeats(train))
    pools = {**pools, "train": train}
    notes.append(f"Training on {len(train)} examples of {source}, drawn {_how_drawn(train)}.")
    if "validation" not in pools:
        size = min(FEW_SHOT_VALIDATION, len(pool) if "test" in pools else len(pool) // 2)
        pool, pools["validation"] = _split_off(pool, size, seed, "validation", source, notes, keep=0)
    if "test" not in pools:
        pools["test"] = pool
        _need(pool, "test", source, count)
        notes.append(f"The test data are the {len(pool)} remaining examples of {source}.")
    return pools


def _split_off(
    pool: ExamplePool[AnyExample],
    size: int | Fraction,
    seed: int,
    name: str,
    source: str,
    notes: list[str],
    keep: int = 1,
) -> tuple[ExamplePool[AnyExample], ExamplePool[AnyExample]]:
    rest, taken = pool.divide(_take(pool.strata, size, seed, keep))
    split, repeated = taken.divide(taken.repeats(rest))
    _need(split, name, source, None)
    notes.append(f"No {name} data given: {len(split)} examples of {source} were split off, {_how_drawn(split)}.")
    return rest.joined(repeated), split


def _how_drawn(pool: ExamplePool[AnyExample]) -> str:
    groups = pool.strata.counts()
    if any(isinstance(group, tuple) for group in groups):
        return "in proportion to the rarest label of each"
    return "in proportion to the classes" if any(group is not None for group in groups) else "at random"


def _weaknesses(name: str, pool: ExamplePool[AnyExample], train: ExamplePool[AnyExample]) -> list[str]:
    """Notes on a split whose scores mislead: it shares texts with the training data, or all labels are the same."""
    notes: list[str] = []
    repeated = np.flatnonzero(pool.repeats(train))
    if len(repeated):
        notes.append(
            f"{len(repeated)} of {len(pool)} {name} texts also occur in the training data (the first: "
            f"{pool.examples[repeated[0]].where}): the {name} score is too optimistic."
        )
    only = _only_label(pool.examples)
    if only is not None:
        same = f"are of the class {only!r}" if isinstance(only, str) else f"have the number {only}"
        same = f"have the labels {list(only)}" if isinstance(only, tuple) else same
        notes.append(f"All {len(pool)} {name} examples {same}: scores mean little.")
    return notes


def _only_label(examples: Iterable[Any]) -> str | tuple[str, ...] | float | None:
    """The label that all examples have; None if there are different ones, or none."""
    labels = (example.label if isinstance(example, Example) else None for example in examples)
    only: str | tuple[str, ...] | float | None = next(labels, None)
    return only if all(label == only for label in labels) else None


def _need(pool: ExamplePool[AnyExample], name: str, source: str, few_shot_count: int | None) -> None:
    if not len(pool):
        after = f" after few_shot={few_shot_count}" if few_shot_count else ""
        raise InputError(
            f"{source} has too few examples{after} to split off {name} data. Give {name} data ({name}_file), or more "
            "training data."
        )
