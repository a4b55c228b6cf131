"""`TokenTable`: the tokens of all examples, among which those of a batch are found before cached states are read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

# Examples that are hashed at a time.
PART = 4096


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
        lengths, tokens = (torch.cat([column[place] for column in columns]) for place in (0, 1))
        types = torch.cat([types for *_, types in columns])
        if len(types):  # a model without token types takes all of them for 0
            types = torch.cat([types if len(types) else torch.zeros_like(ids) for _, ids, types in columns])
        return cls(tokens, lengths.cumsum(0) - lengths, lengths, types)

    def find(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> FoundTexts | None:
        """Where the texts of a batch stand in the table, or None if the table lacks one of them.

        Args:
            input_ids: (batch, length).
            attention_mask: (batch, length), or None if all tokens are real.
            token_type_ids: (batch, length), or None if all are 0.
        """
        if input_ids.dim() != 2 or not len(self.lengths):
            return None
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        if mask.shape != input_ids.shape or types.shape != input_ids.shape:
            return None
        number = (mask.cumsum(-1) - 1).clamp_min(0)
        rows = self._index.rows(input_ids, types, number, mask)
        lengths = self.lengths[rows]
        if not torch.equal(mask.sum(-1), lengths) or not bool(lengths.all()):
            return None
        index = self.starts[rows][:, None] + number
        same = (self.tokens[index] == input_ids) & ((self.types[index] if len(self.types) else 0) == types)
        return FoundTexts(rows, index, mask) if bool((same | ~mask).all()) else None

    @functools.cached_property
    def _index(self) -> TextIndex:
        return TextIndex(self)


@dataclass(frozen=True)
class FoundTexts:
    """Where the texts of a batch stand in a table.

    Attributes:
        rows: (batch,) numbers of examples with these texts.
        index: (batch, length) the place of each token, an arbitrary one of the example at padding.
        mask: (batch, length) true at real tokens.
    """

    rows: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor


class TextIndex:
    """Finds examples by a hash of their tokens, the sum of w_i (t_i + 2^32 s_i) modulo 2^64 over the places i.

    Here t are the tokens, s their types, and w odd numbers drawn at random. Other texts very rarely have the same hash;
    compare the tokens of the texts that are found.

    Args:
        table: the examples.
    """

    def __init__(self, table: TokenTable) -> None:
        longest = max(int(table.lengths.max()), 1)
        generator = torch.Generator().manual_seed(0)
        self._weights = torch.randint(torch.iinfo(torch.int64).max, (longest,), generator=generator) | 1
        # In parts, which bounds the memory that this takes on top of the table.
        parts = zip(table.starts.split(PART), table.lengths.split(PART), strict=True)
        hashes = torch.cat([self._hashes_of_part(table, starts, lengths) for starts, lengths in parts])
        # Of equal texts the first is found.
        self._hashes, self._rows = hashes.sort(stable=True)

    def rows(
        self, input_ids: torch.Tensor, types: torch.Tensor, number: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """For each text of a batch, the number of the example with its hash, or an arbitrary one, (batch,).

        Args:
            input_ids: (batch, length).
            types: (batch, length) `token_type_ids`.
            number: (batch, length) the place of each token in its text.
            mask: (batch, length) true at real tokens.
        """
        hashes = self._terms(input_ids, types, number).masked_fill(~mask, 0).sum(-1)
        return self._rows[torch.searchsorted(self._hashes, hashes).clamp_max(len(self._rows) - 1)]

    def _hashes_of_part(self, table: TokenTable, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        first, total = int(starts[0]), int(lengths.sum())
        number = torch.arange(first, first + total) - starts.repeat_interleave(lengths)
        types = table.types[first : first + total] if len(table.types) else torch.zeros_like(number)
        terms = self._terms(table.tokens[first : first + total], types, number)
        return torch.zeros_like(lengths).index_add_(0, torch.arange(len(lengths)).repeat_interleave(lengths), terms)

    def _terms(self, tokens: torch.Tensor, types: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        weights = self._weights[number.clamp_max(len(self._weights) - 1)]
        return weights * (tokens.long() + (types.long() << 32))


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
