"""The two splits of the training data: one for the weights, one held out for the architecture (method section 4)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from sptune.errors import InputError
from sptune.search.search_config import SearchConfig
from sptune.stratified import allot


def split_dataset(dataset: Dataset, search: SearchConfig) -> tuple[Dataset, Dataset]:
    """The weight split and the architecture split of the training data.

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
        raise InputError(f"The training data holds {size} example(s); the search needs at least 2, one for each split.")
    splits = split_indices(_class_labels(dataset), size, gate_fraction=search.gate_fraction, seed=search.seed)
    if hasattr(dataset, "select"):
        return dataset.select(splits[0]), dataset.select(splits[1])
    return Subset(dataset, splits[0]), Subset(dataset, splits[1])


def _class_labels(dataset: Any) -> list[int] | None:
    """The group of each example within which the splits are drawn; None if the labels make no groups.

    They are the column "labels" if it holds a class index for every example. Of 0 and 1 for each of several labels they
    are the rarest label of each example, so that rare ones are in both splits.
    """
    names = ("labels", "label")  # transformers' collators rename the second to the first
    if hasattr(dataset, "column_names"):
        column: Any = next((dataset[name] for name in names if name in dataset.column_names), [])
    else:
        examples = (dataset[index] for index in range(len(dataset)))
        column = [example[name] for example in examples for name in names if name in example]
    column = list(column)
    try:
        tensors = bool(column) and isinstance(column[0], torch.Tensor)
        labels = torch.stack(column) if tensors else torch.as_tensor(column)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.dim() == 2 and labels.is_floating_point():
        return _rarest_labels(labels > 0).tolist()
    return labels.tolist() if labels.shape == (len(dataset),) and not labels.is_floating_point() else None


def _rarest_labels(has_label: torch.Tensor) -> torch.Tensor:
    """The index of the rarest label of each example, (examples,), or the number of labels for one without any.

    Args:
        has_label: (examples, labels), booleans.
    """
    counts = has_label.sum(0)
    ranked = torch.where(has_label, counts, len(has_label) + 1)
    return torch.where(has_label.any(1), ranked.argmin(1), has_label.shape[1])


def split_indices(
    labels: Sequence[int] | None, size: int, *, gate_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the examples in the weight split and in the architecture split, ascending; the seed decides.

    Args:
        labels: class of each example, to split within each class; None to split without.
        size: number of examples, at least 2.
        gate_fraction: share of the architecture split.
        seed: of the choice.

    Returns:
        Two lists, neither empty, that together hold every index once. Each class has its share in the architecture
        split, give or take one example; one example of a class stays in the weight split while other classes can fill
        up the architecture split.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index in range(size):
        by_class[0 if labels is None else int(labels[index])].append(index)
    # A seed must keep its split: results and checkpoints of searches depend on it.
    shuffler = random.Random(seed)
    members = [by_class[label] for label in sorted(by_class)]
    for indices in members:
        shuffler.shuffle(indices)

    wanted = min(max(round(size * gate_fraction), 1), size - 1)
    shares = [len(indices) * gate_fraction for indices in members]
    all_but_one = [len(indices) - 1 for indices in members]
    counts = allot(shares, wanted, all_but_one)
    # Where other classes cannot fill the split, classes give their last example, too.
    due = [share - count for share, count in zip(shares, counts, strict=True)]
    last = allot(due, wanted - sum(counts), [1] * len(members)) if counts == all_but_one else [0] * len(members)
    held_out = sorted(
        index for indices, count, one in zip(members, counts, last, strict=True) for index in indices[: count + one]
    )
    chosen = set(held_out)
    return [index for index in range(size) if index not in chosen], held_out
