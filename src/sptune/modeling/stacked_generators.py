"""Generators of several adapters as one, with the weights of its adapter in each row of a batch.

Generators of one kind are stacked and multiplied with `torch.baddbmm`. Narrower bottlenecks are padded with zeros to
the widest, which is exact: the added rows of the up-projection are zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from sptune.config import SPTConfig
from sptune.modeling.gates import at_least_float32
from sptune.modeling.generators import PHMLinear


@dataclass(frozen=True)
class RowGenerator:
    """What makes the prompts of a row at one layer.

    Attributes:
        generator: of the row's adapter.
        gate: the adapter's gate parameter alpha, (1,); None in a final network.
        config: the adapter's configuration.
    """

    generator: nn.Module
    gate: nn.Parameter | None
    config: SPTConfig

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the generator's weights."""
        return next(self.generator.parameters()).dtype

    def kind(self, device: torch.device) -> Hashable:
        """What must be the same for generators to be stacked on a device."""
        if next(self.generator.parameters()).device != device:
            return id(self.generator)  # accelerate brings offloaded weights back when their module is called
        config = self.config
        activation = getattr(self.generator, "activation", None)
        # An activation with weights belongs to one adapter.
        has_weights = activation is not None and next(activation.parameters(), None) is not None
        function = id(activation) if has_weights else config.activation
        return config.placement, config.generator, config.num_virtual_tokens, config.residual, function, self.dtype


@dataclass(frozen=True)
class RowGroup:
    """Rows whose prompts are computed together.

    Attributes:
        rows: their indices, (n,); None for all rows.
        generator: makes their prompts from their states.
        gates: the values of their gates, (n, 1, 1); None if all are final networks.
        config: the configuration of one of them.
        dtype: of the generator's weights.
    """

    rows: torch.Tensor | None
    generator: Callable[..., torch.Tensor]
    gates: torch.Tensor | None
    config: SPTConfig
    dtype: torch.dtype

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """The group's rows (n, ...) of a tensor (batch, ...)."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

    def add_offsets(
        self,
        total: torch.Tensor,
        states: torch.Tensor,
        to_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor],
    ) -> torch.Tensor:
        """Add the offsets of `placement="add"`.

        Args:
            total: the states with the offsets of other groups, (batch, length, d).
            states: the states without offsets, (batch, length, d).
            to_dtype: casts states to the dtype of the generator.

        Returns:
            (batch, length, d); other rows are those of `total`, bit for bit.
        """
        own = self.select(states)
        offsets = self.generator(to_dtype(own, self.dtype))
        if self.gates is not None:
            offsets = self.gates.to(offsets.dtype) * offsets
        offsets = offsets.to(states.dtype)
        return total + offsets if self.rows is None else total.index_add(0, self.rows, offsets.expand_as(own))


class StackedProjection(nn.Module):
    """Linear or PHM projections of several adapters, each on its rows; smaller ones are padded with zeros.

    Args:
        projections: of the adapters.
        index: the number of each row's projection, (rows,).
    """

    def __init__(self, projections: Sequence[nn.Module], index: torch.Tensor) -> None:
        super().__init__()
        weights, biases = zip(*(_weight_and_bias(one) for one in projections), strict=True)
        sizes = [max(weight.shape[side] for weight in weights) for side in (0, 1)]
        self.weight = torch.stack([_padded(weight, sizes) for weight in weights])[index]
        self.bias = torch.stack([_padded(bias, sizes[1:]) for bias in biases])[index, None]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map states (rows, ..., in) to (rows, ..., out)."""
        flat = states.reshape(states.shape[0], -1, states.shape[-1])
        return torch.baddbmm(self.bias, flat, self.weight).reshape(*states.shape[:-1], -1)


def group_rows(rows: Sequence[RowGenerator | None], device: torch.device) -> list[RowGroup]:
    """Group the rows of a batch by kind of generator.

    Args:
        rows: what makes the prompts of each row; None for a row without prompts at this layer.
        device: of the states.
    """
    kinds: dict[Hashable, list[tuple[int, RowGenerator]]] = {}
    for number, row in enumerate(rows):
        if row is not None:
            kinds.setdefault(row.kind(device), []).append((number, row))
    return [_group(members, len(rows), device) for members in kinds.values()]


def stack_generators(generators: Sequence[nn.Module], index: torch.Tensor) -> nn.Module:
    """A generator with the weights of `generators[index[b]]` in row b; a single one is returned as it is.

    Args:
        generators: of one kind.
        index: (rows,).
    """
    if len(generators) == 1:
        return generators[0]
    stacked = copy.copy(generators[0])
    stacked._modules, stacked._parameters = dict(stacked._modules), {}
    for name, part in generators[0].named_children():
        if isinstance(part, (nn.Linear, PHMLinear)):
            stacked._modules[name] = StackedProjection([getattr(one, name) for one in generators], index)
    for name, _ in generators[0].named_parameters(recurse=False):
        stacked.__dict__[name] = _stack_vectors(name, [getattr(one, name) for one in generators])[index]
    return stacked


def _group(members: list[tuple[int, RowGenerator]], batch: int, device: torch.device) -> RowGroup:
    distinct = list({id(row.generator): row for _, row in members}.values())
    places = {id(row.generator): place for place, row in enumerate(distinct)}
    index = torch.tensor([places[id(row.generator)] for _, row in members], device=device)
    return RowGroup(
        rows=None if len(members) == batch else torch.tensor([number for number, _ in members], device=device),
        generator=stack_generators([row.generator for row in distinct], index),
        gates=_gates([row.gate for row in distinct], index),
        config=distinct[0].config,
        dtype=distinct[0].dtype,
    )


def _stack_vectors(name: str, values: list[torch.Tensor]) -> torch.Tensor:
    """The parameters of this name that generators hold themselves, (adapters, vectors, size)."""
    if name == "queries":
        # Their scores are divided by the root of r, which is that of the widest once they are padded.
        widest = max(value.shape[-1] for value in values)
        values = [_padded(value, [*value.shape[:-1], widest]) * math.sqrt(widest / value.shape[-1]) for value in values]
    return torch.stack([value.reshape(-1, value.shape[-1]) for value in values])


def _padded(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The tensor with zeros behind it in each dimension, up to these sizes."""
    missing: list[Any] = [(0, wanted - size) for wanted, size in zip(sizes, tensor.shape, strict=True)]
    return pad(tensor, [number for pair in reversed(missing) for number in pair])


def _weight_and_bias(projection: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (in, out) and the bias (out,) of a linear or PHM projection."""
    if isinstance(projection, PHMLinear):
        return projection.weight(), projection.bias
    assert isinstance(projection, nn.Linear)
    return projection.weight.mT, projection.bias


def _gates(gates: Sequence[nn.Parameter | None], index: torch.Tensor) -> torch.Tensor | None:
    """The gate values (rows, 1, 1) of rows whose alpha is gates[index[b]], 1 without; None if all are without."""
    if all(gate is None for gate in gates):
        return None
    values = [torch.ones(1) if gate is None else torch.sigmoid(at_least_float32(gate)) for gate in gates]
    return torch.cat([value.to(index.device) for value in values])[index, None, None]
