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
from sptune.training.caching.activation_cache import ActivationCache
from sptune.training.caching.token_table import FoundTexts

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


class CachedTexts:
    """A `StateSource` for batches of the examples of a cache, which are found by their tokens.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: ActivationCache) -> None:
        self.cache = cache
        self.layer = cache.layer
        self._found: FoundTexts | None = None

    @torch.compiler.disable
    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The stored states (batch, length, d); None if a text is no example's, or is not stored yet."""
        mask, types = (None if one is None else one.cpu() for one in (attention_mask, token_type_ids))
        found = self._found = self.cache.table.find(input_ids.cpu(), mask, types)
        if found is None or not self.cache.holds(found.rows):
            return None
        states = self.cache.states.index_select(0, found.index.flatten())
        return states.view(*found.index.shape, -1).to(input_ids.device)

    @torch.compiler.disable
    def record(self, states: torch.Tensor) -> None:
        """Store states (batch, length, d), unless they belong to other tokens."""
        found = self._found
        if found is None or self.cache.given_up or states.shape[:2] != found.index.shape:
            return
        # A batch may have a text several times, as in a search under several layer masks.
        places = list({row: place for place, row in enumerate(found.rows.tolist())}.values())
        index, mask, states = found.index[places], found.mask[places], states.detach()[places].cpu()
        try:
            self.cache.write(found.rows[places], index[mask], states[mask])
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
