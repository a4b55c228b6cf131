"""Sources of the states at the first trained layer: the activation cache, or an earlier forward over the same batch."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from sptune.modeling.backbones import unwrapped
from sptune.modeling.calls import argument_positions
from sptune.training.activation_cache import ActivationCache

logger = logging.getLogger(__name__)


class StateSource(Protocol):
    """Gives a forward the states at the first trained layer, and takes those that the forward had to compute.

    Attributes:
        layer: the first trained layer.
    """

    layer: int

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """States (batch, length, d) for these tokens, or None to compute them."""

    def record(self, states: torch.Tensor) -> None:
        """Take the states (batch, length, d) that were computed after `read` gave None."""


class CachedRows:
    """A `StateSource` for one batch of examples.

    Args:
        cache: the cache.
        rows: (batch,) numbers of the examples.
    """

    def __init__(self, cache: ActivationCache, rows: torch.Tensor) -> None:
        self.cache = cache
        self.layer = cache.layer
        self.rows = rows.cpu()
        self._found: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.compiler.disable
    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The stored states (batch, length, d); None if the tokens are others, or some example is not stored yet.

        The batch may repeat the examples, as a search under several layer masks does.
        """
        mask, types = (None if one is None else one.cpu() for one in (attention_mask, token_type_ids))
        rows = self.rows.repeat(max(len(input_ids) // len(self.rows), 1))
        self._found = self.cache.table.positions(rows, input_ids.cpu(), mask, types)
        if self._found is None or not self.cache.holds(rows):
            return None
        index, _ = self._found
        states = self.cache.states.index_select(0, index.flatten())
        return states.view(*index.shape, -1).to(input_ids.device)

    @torch.compiler.disable
    def record(self, states: torch.Tensor) -> None:
        """Store states (batch, length, d), unless they belong to other tokens."""
        if self._found is None or self.cache.given_up or states.shape[:2] != self._found[0].shape:
            return
        index, mask = self._found
        size = len(self.rows)  # more rows are repetitions
        index, mask, states = index[:size], mask[:size], states.detach()[:size].cpu()
        try:
            self.cache.write(self.rows, index[mask], states[mask])
        except OSError as error:
            logger.warning("The activation cache cannot grow (%s); training goes on without it.", error)
            self.cache.give_up()


class BatchStates:
    """A `StateSource` for several forwards over one batch, whose lowest prompt layers differ.

    The forward with the highest one should come first: it runs all layers that the others have below their prompts.

    Args:
        blocks: the model's blocks.

    Attributes:
        layer: the lowest prompt layer of the current forward.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.blocks = blocks
        self._names = [next(iter(argument_positions(unwrapped(block).forward))) for block in blocks]
        self.layer = 0
        self._states: dict[int, torch.Tensor] = {}
        self._passed: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def noting(self) -> Iterator[BatchStates]:
        """In the forwards inside, keep the input of each block."""
        handles = [
            block.register_forward_pre_hook(functools.partial(self._note, index), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The states at `layer`, if an earlier forward reached it without prompts."""
        self._passed = {}
        return self._states.get(self.layer)

    def record(self, states: torch.Tensor) -> None:
        """Keep the inputs of the blocks up to `layer`."""
        self._states |= self._passed

    def _note(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if 0 < index <= self.layer and index not in self._states:
            self._passed[index] = (args[0] if args else kwargs[self._names[index]]).detach()
