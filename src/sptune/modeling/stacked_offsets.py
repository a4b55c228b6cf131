"""The offsets of one prompt layer for rows of several adapters (`placement="add"`), from stacked weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from sptune.modeling.gates import at_least_float32
from sptune.modeling.generators import BottleneckOffset, PHMLinear, StaticOffset


@dataclass(frozen=True)
class RowGenerator:
    """What makes the offsets of a row.

    Attributes:
        generator: of the row's adapter.
        gate: the adapter's gate parameter alpha, (1,); None in a final network.
        activation: the name of the generator's activation.
    """

    generator: nn.Module
    gate: nn.Parameter | None
    activation: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the generator's weights."""
        return next(self.generator.parameters()).dtype

    def kind(self) -> Hashable:
        """Generators of one kind can be stacked."""
        if isinstance(self.generator, BottleneckOffset):
            # An activation with weights of its own belongs to one adapter.
            own = next(self.generator.activation.parameters(), None) is not None
            return BottleneckOffset, self.dtype, id(self.generator) if own else self.activation
        return type(self.generator), self.dtype


@dataclass(frozen=True)
class RowGroup:
    """Rows whose offsets are computed together.

    Attributes:
        rows: their indices, (n,); None for all rows.
        offsets: makes their offsets, (n, length, d) or a shape that broadcasts to it, from their states.
        gates: (n, 1, 1); None if all are final networks.
        dtype: of the generators.
    """

    rows: torch.Tensor | None
    offsets: Callable[[torch.Tensor], torch.Tensor]
    gates: torch.Tensor | None
    dtype: torch.dtype

    def add_to(
        self,
        total: torch.Tensor,
        states: torch.Tensor,
        to_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor],
    ) -> torch.Tensor:
        """Add the group's offsets.

        Args:
            total: the states with the offsets of other groups, (batch, length, d).
            states: the states without offsets, (batch, length, d).
            to_dtype: casts states to the dtype of the generators.

        Returns:
            (batch, length, d); other rows are those of `total`, bit for bit.
        """
        own = states if self.rows is None else states.index_select(0, self.rows)
        offsets = self.offsets(to_dtype(own, self.dtype))
        if self.gates is not None:
            offsets = self.gates.to(offsets.dtype) * offsets
        offsets = offsets.to(states.dtype)
        return total + offsets if self.rows is None else total.index_add(0, self.rows, offsets.expand_as(own))


class StackedBottlenecks:
    """W_up sigma(W_down h + b_down) + b_up, with the weights of another bottleneck generator in each row.

    Narrower bottlenecks are padded to the widest. That is exact: the padded rows of W_up are zero.

    Args:
        generators: of the adapters, with the same activation.
        index: the number of each row's generator, (rows,).
    """

    def __init__(self, generators: Sequence[BottleneckOffset], index: torch.Tensor) -> None:
        down = [_weight_and_bias(one.down) for one in generators]
        up = [_weight_and_bias(one.up) for one in generators]
        self.activation = generators[0].activation
        self.down = pad_sequence([weight.mT for weight, _ in down], batch_first=True)[index].mT  # (rows, d, r)
        self.down_bias = pad_sequence([bias for _, bias in down], batch_first=True)[index, None]
        self.up = pad_sequence([weight for weight, _ in up], batch_first=True)[index]  # (rows, r, d)
        self.up_bias = torch.stack([bias for _, bias in up])[index, None]

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Offsets (rows, length, d) from states (rows, length, d)."""
        hidden = self.activation(torch.baddbmm(self.down_bias, states, self.down))
        return torch.baddbmm(self.up_bias, hidden, self.up)


class StackedStatics:
    """Static generators of several adapters, each on its rows.

    Args:
        generators: of the adapters.
        index: the number of each row's generator, (rows,).
    """

    def __init__(self, generators: Sequence[StaticOffset], index: torch.Tensor) -> None:
        self.vectors = torch.stack([one.offset for one in generators])[index, None]

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Offsets (rows, 1, d), the same for all tokens of a row."""
        return self.vectors


def group_rows(rows: Sequence[RowGenerator | None], device: torch.device) -> list[RowGroup]:
    """Group the rows of a batch by kind of generator.

    Args:
        rows: what makes the offsets of each row; None for a row without prompts at this layer.
        device: of the states.
    """
    kinds: dict[Hashable, list[int]] = {}
    for number, row in enumerate(rows):
        if row is not None:
            kinds.setdefault(row.kind(), []).append(number)
    return [_group(rows, numbers, device) for numbers in kinds.values()]


def _group(rows: Sequence[RowGenerator | None], numbers: list[int], device: torch.device) -> RowGroup:
    members = [row for row in (rows[number] for number in numbers) if row is not None]
    distinct = list({id(row.generator): row for row in members}.values())
    places = {id(row.generator): place for place, row in enumerate(distinct)}
    index = torch.tensor([places[id(row.generator)] for row in members], device=device)
    return RowGroup(
        rows=None if len(numbers) == len(rows) else torch.tensor(numbers, device=device),
        offsets=_stack([row.generator for row in distinct], index),
        gates=_gates([row.gate for row in distinct], index),
        dtype=members[0].dtype,
    )


def _stack(generators: Sequence[nn.Module], index: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes the offsets of rows with these generators of one kind; row b has number index[b]."""
    first = generators[0]
    if len(generators) == 1:
        return first
    if isinstance(first, StaticOffset):
        return StackedStatics(cast(Sequence[StaticOffset], generators), index)
    return StackedBottlenecks(cast(Sequence[BottleneckOffset], generators), index)


def _weight_and_bias(projection: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (in, out) and the bias (out,) of a linear or PHM projection."""
    if isinstance(projection, PHMLinear):
        return projection.weight(), projection.bias
    linear = cast(nn.Linear, projection)
    return linear.weight.mT, linear.bias


def _gates(gates: Sequence[nn.Parameter | None], index: torch.Tensor) -> torch.Tensor | None:
    """The gate values (rows, 1, 1) of rows whose alpha is gates[index[b]], 1 without; None if all are without."""
    if all(gate is None for gate in gates):
        return None
    values = [torch.ones(1) if gate is None else torch.sigmoid(at_least_float32(gate)) for gate in gates]
    return torch.cat([value.to(index.device) for value in values])[index, None, None]
