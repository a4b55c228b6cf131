"""Examples that carry their number in the activation cache, and a collator that passes the numbers into the batch."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ROW = "cache_row"


@dataclass
class Numbered:
    """A dataset whose examples have their number in the cache in the column `cache_row`.

    Attributes:
        dataset: with a length and an index, of dictionaries.
        first: number of its first example.
    """

    dataset: Any
    first: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        example = copy.copy(self.dataset[index])
        example[ROW] = self.first + index
        return example


def number_examples(dataset: Any, first: int) -> Any:
    """The dataset with a column `cache_row` that counts from `first`."""
    if hasattr(dataset, "add_column") and hasattr(dataset, "column_names"):
        return dataset.add_column(ROW, np.arange(first, first + len(dataset)))
    return Numbered(dataset, first)


@dataclass(frozen=True)
class NumberedCollator:
    """A collator that passes the numbers of the examples on, around another collator."""

    collator: Any

    def __call__(self, features: list[Any]) -> Any:
        """The other collator's batch, and `cache_row` (batch,) if every example has one."""
        rows, examples = [], []
        for feature in features:
            if isinstance(feature, MutableMapping) and ROW in feature:
                feature = copy.copy(feature)
                rows.append(int(feature.pop(ROW)))
            examples.append(feature)
        batch = self.collator(examples)
        if len(rows) == len(features):
            batch[ROW] = torch.tensor(rows)
        return batch
