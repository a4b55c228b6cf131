"""The two halves of the training data: one for the weights, one held out for the gates (method section 4)."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from sptune.errors import InputError
from sptune.search.search_config import SearchConfig


def split_dataset(dataset: Dataset, search: SearchConfig) -> tuple[Dataset, Dataset]:
    """The weight half and the gate half of the training data.

    Raises:
        InputError: the data have no length, or fewer than two examples.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"The search splits its training data in two and cannot split a {type(dataset).__name__} without a length; "
            "give a dataset with a length and an index."
        )
    size = len(dataset)
    if size < 2:
        raise InputError(f"The training data holds {size} example(s); the search needs at least 2, one for each half.")
    halves = split_halves(_class_labels(dataset), size, gate_fraction=search.gate_fraction, seed=search.seed)
    if hasattr(dataset, "select"):
        return dataset.select(halves[0]), dataset.select(halves[1])
    return Subset(dataset, halves[0]), Subset(dataset, halves[1])


def _class_labels(dataset: Any) -> list[int] | None:
    """The column "labels", if it holds a class index for every example."""
    names = ("labels", "label")  # transformers' collators rename the second to the first
    if hasattr(dataset, "column_names"):
        column: Any = next((dataset[name] for name in names if name in dataset.column_names), [])
    else:
        examples = (dataset[index] for index in range(len(dataset)))
        column = [example[name] for example in examples for name in names if name in example]
    try:
        labels = torch.as_tensor(list(column))
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels.tolist() if labels.shape == (len(dataset),) and not labels.is_floating_point() else None


def split_halves(
    labels: Sequence[int] | None, size: int, *, gate_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Example indices of the weight half and of the gate half, each in ascending order, the same for the same seed.

    Args:
        labels: class of each example, to split within each class; None to split without.
        size: number of examples, at least 2.
        gate_fraction: share of the gate half.
        seed: what the choice depends on.

    Returns:
        Two lists, neither empty, that together hold every index once. Each class has its share in the gate half, give
        or take one example; one example of a class stays in the weight half while other classes can fill up the gate
        half.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index in range(size):
        by_class[0 if labels is None else int(labels[index])].append(index)
    shuffler = random.Random(seed)
    members = [by_class[label] for label in sorted(by_class)]
    for indices in members:
        shuffler.shuffle(indices)

    counts = [min(math.floor(len(indices) * gate_fraction), len(indices) - 1) for indices in members]
    wanted = min(max(round(size * gate_fraction), 1), size - 1)
    while sum(counts) < wanted:
        # A class keeps an example in the weight half while other classes can give one.
        most_due = max(
            (c for c in range(len(members)) if counts[c] < len(members[c])),
            key=lambda c: (counts[c] < len(members[c]) - 1, len(members[c]) * gate_fraction - counts[c]),
        )
        counts[most_due] += 1
    gate_half = sorted(index for indices, count in zip(members, counts, strict=True) for index in indices[:count])
    chosen = set(gate_half)
    return [index for index in range(size) if index not in chosen], gate_half
