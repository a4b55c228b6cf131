"""`TokenTable`: the tokens of all examples, with which a batch is compared before cached states are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch


@dataclass(frozen=True)
class TokenTable:
    """The real tokens of all examples, one after another.

    Attributes:
        tokens: (total tokens,) int64.
        starts: (examples,) the place of each example's first token.
        lengths: (examples,) its number of tokens.
        types: (total tokens,) int64, the tokens' `token_type_ids`, or nothing.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    types: torch.Tensor

    @classmethod
    def of(cls, datasets: Sequence[Any]) -> TokenTable:
        """The table of several datasets, one after another.

        Raises:
            KeyError: an example has no `input_ids`.
        """
        columns = [_flat_columns(dataset) for dataset in datasets]
        lengths, tokens, types = (torch.cat(parts) for parts in zip(*columns, strict=True))
        return cls(tokens, lengths.cumsum(0) - lengths, lengths, types)

    def positions(
        self,
        rows: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The place in the table of each token of a batch, or None if the batch has other tokens.

        Args:
            rows: (batch,) numbers of the examples.
            input_ids: (batch, length).
            attention_mask: (batch, length), or None if all tokens are real.
            token_type_ids: (batch, length), or None if all are 0.

        Returns:
            Places (batch, length), arbitrary ones of the example at padding, and the mask as booleans.
        """
        if input_ids.dim() != 2 or len(rows) != len(input_ids):
            return None
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if mask.shape != input_ids.shape:
            return None
        number = (mask.cumsum(-1) - 1).clamp_min(0)
        lengths = self.lengths[rows]
        if not torch.equal(mask.sum(-1), lengths) or not bool(lengths.all()):
            return None
        index = self.starts[rows][:, None] + number
        same = self.tokens[index] == input_ids
        if len(self.types) or token_type_ids is not None:
            types = self.types[index] if len(self.types) else torch.zeros_like(index)
            same &= types == (0 if token_type_ids is None else token_type_ids)
        return (index, mask) if bool((same | ~mask).all()) else None


def _flat_columns(dataset: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths, `input_ids` and `token_type_ids` (or nothing) of all examples, padding left out."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    if hasattr(dataset, "select_columns") and hasattr(dataset, "column_names"):
        table = dataset.select_columns([name for name in names if name in dataset.column_names])
        arrow = table.with_format("arrow")[:]
        lists = {name: pa.concat_arrays(arrow[name].chunks) for name in arrow.column_names}
    else:
        rows = [dataset[index] for index in range(len(dataset))]
        lists = {name: pa.array([_plain(row[name]) for row in rows]) for name in names if rows and name in rows[0]}
    lengths = torch.as_tensor(np.array(lists["input_ids"].value_lengths()), dtype=torch.long)
    flat = {name: torch.as_tensor(np.array(column.flatten()), dtype=torch.long) for name, column in lists.items()}
    types = flat.get("token_type_ids", lengths.new_empty(0))
    mask = flat.get("attention_mask")
    if mask is None or bool(mask.all()):
        return lengths, flat["input_ids"], types
    real = mask.bool()
    example = torch.arange(len(lengths)).repeat_interleave(lengths)
    lengths = torch.zeros_like(lengths).index_add_(0, example, mask.clamp_max(1))
    return lengths, flat["input_ids"][real], types[real] if len(types) else types


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
