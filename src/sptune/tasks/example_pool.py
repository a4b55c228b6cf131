"""ExamplePool: examples of which splits are drawn, with their groups (`Strata`) and hashes of their texts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from sptune.tasks.stored_examples import StoredExamples


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


@dataclass(frozen=True)
class Strata:
    """The groups of examples within which splits are drawn.

    Attributes:
        groups: different ones.
        codes: (examples,) the place of each example's group in `groups`.
    """

    groups: list[Hashable]
    codes: np.ndarray

    @classmethod
    def of(cls, groups: Iterable[Hashable]) -> Strata:
        """The groups of all examples, one after the other."""
        places: dict[Hashable, int] = {}
        codes = np.fromiter((places.setdefault(group, len(places)) for group in groups), np.int32)
        return cls(list(places), codes)

    def counts(self) -> dict[Hashable, int]:
        """The number of examples of each group that has any."""
        numbers = np.bincount(self.codes, minlength=len(self.groups)).tolist()
        return {group: number for group, number in zip(self.groups, numbers, strict=True) if number}

    def select(self, places: np.ndarray) -> Strata:
        """Those of some examples."""
        return Strata(self.groups, self.codes[places])


class ExamplePool(Generic[AnyExample]):
    """Examples, and what splitting needs of them, so that their file is read once.

    Attributes:
        examples: the examples.
        strata: their groups.
        hashes: (examples,) those of their texts.
    """

    def __init__(self, examples: StoredExamples[AnyExample], strata: Strata, hashes: np.ndarray) -> None:
        self.examples = examples
        self.strata = strata
        self.hashes = hashes

    @classmethod
    def of(cls, examples: StoredExamples[AnyExample]) -> ExamplePool[AnyExample]:
        """All of these examples."""
        hashes = np.empty(len(examples), dtype=np.int64)

        def strata() -> Iterator[Hashable]:
            for number, example in enumerate(examples):
                hashes[number] = hash(example.text)
                yield example.stratum

        return cls(examples, Strata.of(strata()), hashes)

    def divide(self, is_taken: np.ndarray) -> tuple[ExamplePool[AnyExample], ExamplePool[AnyExample]]:
        """The others, and those that are taken."""
        return self._select(np.flatnonzero(~is_taken)), self._select(np.flatnonzero(is_taken))

    def joined(self, other: ExamplePool[AnyExample]) -> ExamplePool[AnyExample]:
        """These and those of another pool of the same file."""
        codes = np.concatenate([self.strata.codes, other.strata.codes])
        hashes = np.concatenate([self.hashes, other.hashes])
        return ExamplePool(self.examples.joined(other.examples), Strata(self.strata.groups, codes), hashes)

    def repeats(self, train: ExamplePool[AnyExample]) -> np.ndarray:
        """Whether the text of each example also occurs in the training data."""
        are_same = _is_in(self.hashes, train.hashes)
        if are_same.any():  # two texts can have the same hash
            alike = np.flatnonzero(_is_in(train.hashes, self.hashes[are_same]))
            texts = {example.text for example in train.examples.select(alike)}
            places = np.flatnonzero(are_same)
            are_same[places] = [example.text in texts for example in self.examples.select(places)]
        return are_same

    def _select(self, places: np.ndarray) -> ExamplePool[AnyExample]:
        return ExamplePool(self.examples.select(places), self.strata.select(places), self.hashes[places])

    def __len__(self) -> int:
        return len(self.examples)


def _is_in(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each value is among the others; `numpy.isin` takes several times the memory."""
    if not len(others):
        return np.zeros(len(values), dtype=bool)
    ordered = np.sort(others)
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values
