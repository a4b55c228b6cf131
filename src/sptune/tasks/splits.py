"""Examples, and how they are divided: stratified by label, seeded, never overlapping."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from sptune.errors import InputError

TEST_SHARE = Fraction(1, 5)
VALIDATION_SHARE = Fraction(1, 10)
VALIDATION_MOST = 5000
FEW_SHOT_VALIDATION = 1000


@dataclass(frozen=True)
class Example:
    """One text, or one pair, of the data.

    Attributes:
        fields: the text columns.
        label: the name of its class; None where it is not known.
        where: the place it comes from, such as "train.jsonl:17".
    """

    fields: dict[str, str]
    label: str | None
    where: str


@dataclass
class Splits:
    """The data of a run.

    Attributes:
        train: for training and, inside the search, for the gates.
        validation: for choosing.
        test: for the result.
        notes: what was carved out of what, and what looks odd.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    notes: list[str] = field(default_factory=list)


def split_stratified(
    labels: Sequence[Hashable], size: int | float | Fraction, *, seed: int, keep: int = 1
) -> tuple[list[int], list[int]]:
    """Take some examples out, in proportion to the classes.

    Args:
        labels: the label of each example.
        size: how many to take; a float or fraction below 1 is a share of all.
        seed: another seed takes other examples.
        keep: how many of each class stay behind at least.

    Returns:
        The indices that stay and the indices taken, both ascending. Fewer are taken than asked for where `keep` says
        so.
    """
    number = round(len(labels) * size) if isinstance(size, float | Fraction) else size
    counts = Counter(labels)
    taken = _draw(
        labels, _allot(counts, number, {label: max(count - keep, 0) for label, count in counts.items()}), seed
    )
    return [index for index in range(len(labels)) if index not in taken], sorted(taken)


def few_shot(examples: Sequence[Example], count: int, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Draw `count` examples in all, in proportion to the classes, at least one of each.

    Returns:
        Those drawn and the others, both in their order in the data.

    Raises:
        InputError: fewer examples than `count`, or more classes.
    """
    labels: list[Hashable] = [example.label for example in examples]
    counts = Counter(labels)
    if not len(counts) <= count <= len(examples):
        raise InputError(
            f"few_shot={count} does not fit: there are {len(examples)} training examples of {len(counts)} classes. "
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
    """How many of each class make up `number`: in proportion, within `least` and `most`, largest remainders first."""
    total = sum(counts.values())
    order = sorted(counts, key=str)
    exact = {label: Fraction(number * counts[label], max(total, 1)) for label in order}
    allotted = {label: min(max(int(exact[label]), least), most[label]) for label in order}
    while (missing := number - sum(allotted.values())) > 0:
        open_labels = [label for label in order if allotted[label] < most[label]]
        if not open_labels:
            break
        for label in sorted(open_labels, key=lambda label: allotted[label] - exact[label])[:missing]:
            allotted[label] += 1
    while sum(allotted.values()) > number:
        spare = [label for label in order if allotted[label] > least]
        allotted[max(spare, key=lambda label: allotted[label] - exact[label])] -= 1
    return allotted


def _draw(labels: Sequence[Hashable], numbers: Mapping[Hashable, int], seed: int) -> set[int]:
    generator = random.Random(seed)
    places: dict[Hashable, list[int]] = {label: [] for label in sorted(numbers, key=str)}
    for index, label in enumerate(labels):
        places[label].append(index)
    return {index for label, indices in places.items() for index in generator.sample(indices, numbers[label])}


def divide(
    train: list[Example],
    validation: list[Example] | None,
    test: list[Example] | None,
    *,
    few_shot_count: int | None,
    seed: int,
    source: str,
) -> Splits:
    """The three splits, those not given carved out of the training data.

    Without `few_shot_count`: a fifth for the test, then a tenth for validation. With it: so many training examples in
    all, 1,000 for validation, and what is left for the test where none was given. What is carved out never holds a text
    that stays in the training data.

    Args:
        train, validation, test: as read; None for one that was not given.
        few_shot_count: K, or None for all the training data.
        seed: of every draw.
        source: the training data's name, for messages.

    Raises:
        InputError: too few examples to carve from.
    """
    notes: list[str] = []
    if few_shot_count is None:
        whole = len(train)
        if test is None:
            train, test = _carve(train, TEST_SHARE, seed, "test", source, notes)
        if validation is None:
            size = min(round(whole * VALIDATION_SHARE), VALIDATION_MOST)
            train, validation = _carve(train, size, seed, "validation", source, notes)
    else:
        train, pool = few_shot(train, few_shot_count, seed=seed)
        _, pool = _repeats(train, pool)
        notes.append(f"Training on {len(train)} examples of {source}, drawn in proportion to the classes.")
        if validation is None:
            most = len(pool) if test is not None else len(pool) // 2
            pool, validation = _carve(pool, min(FEW_SHOT_VALIDATION, most), seed, "validation", source, notes, keep=0)
        if test is None:
            test = pool
            _need(test, "test", source, few_shot_count)
            notes.append(f"The test data are the {len(test)} examples of {source} that are left.")
    for name, examples in (("validation", validation), ("test", test)):
        repeated, _ = _repeats(train, examples)
        if repeated:
            notes.append(
                f"{len(repeated)} of {len(examples)} {name} texts also stand in the training data (the first: "
                f"{repeated[0].where}): the {name} score is better than it would be on new texts."
            )
        classes = {example.label for example in examples}
        if len(classes) == 1:
            notes.append(f"All {len(examples)} {name} examples are of the class {classes.pop()!r}: scores say little.")
    return Splits(train, validation, test, notes)


def _carve(
    examples: list[Example],
    size: int | Fraction,
    seed: int,
    name: str,
    source: str,
    notes: list[str],
    keep: int = 1,
) -> tuple[list[Example], list[Example]]:
    stay, taken = split_stratified([example.label for example in examples], size, seed=seed, keep=keep)
    rest = [examples[index] for index in stay]
    repeated, carved = _repeats(rest, [examples[index] for index in taken])
    rest.extend(repeated)
    _need(carved, name, source, None)
    notes.append(
        f"No {name} data given: {len(carved)} examples of {source} were set aside, in proportion to the classes."
    )
    return rest, carved


def _need(examples: list[Example], name: str, source: str, few_shot_count: int | None) -> None:
    if not examples:
        after = f" after few_shot={few_shot_count}" if few_shot_count else ""
        raise InputError(
            f"{source} has too few examples{after} to set some aside as {name} data. Give {name} data of your own "
            f"({name}_file), or more training data."
        )


def _repeats(train: list[Example], examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """The examples whose texts stand in the training data too, and the others."""
    texts = {tuple(example.fields.values()) for example in train}
    repeated = [example for example in examples if tuple(example.fields.values()) in texts]
    return repeated, [example for example in examples if tuple(example.fields.values()) not in texts]
