"""Pads prompts and completions to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sptune.tasks.generation_metrics import IGNORED
from sptune.tasks.padding import Batch


@dataclass(frozen=True)
class CompletionCollator:
    """Pads rows of tokens on the right to the longest one, or prompts on the left, where generation goes on.

    Attributes:
        pad_token_id: the token id of padding.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[dict[str, Any]], *, left: bool = False) -> Batch:
        """Make a batch.

        Args:
            features: rows with `input_ids` and, except for generation, `labels`.
            left: whether to pad on the left.

        Returns:
            `input_ids`, `attention_mask` and, if given, `labels` (-100 at padding), (batch, length).
        """
        fills = {"input_ids": self.pad_token_id, "labels": IGNORED}
        columns = {name: [list(one[name]) for one in features] for name in fills if name in features[0]}
        columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
        longest = max(map(len, columns["input_ids"]))
        return {
            name: torch.tensor([_padded(row, longest, fills.get(name, 0), left) for row in rows])
            for name, rows in columns.items()
        }


def _padded(row: list[int], length: int, fill: int, left: bool) -> list[int]:
    padding = [fill] * (length - len(row))
    return padding + row if left else row + padding
