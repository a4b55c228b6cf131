"""`GateSampler`: the gates of a bilevel search. Searchers with other gates than DARTS have their own subclass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

if TYPE_CHECKING:
    from sptune.search.bilevel_trainer import SPTSearchTrainer


class GateSampler:
    """The gates of DARTS: sigmoid(alpha), the same for all examples.

    Args:
        trainer: the trainer of the search.

    Attributes:
        searchers: the values of `SearchConfig.searcher` that have these gates.
        architecture_passes: the cost of the architecture step, in passes forward and backward over a batch.
    """

    searchers: ClassVar[tuple[str, ...]] = ("darts", "spt_darts")
    architecture_passes: ClassVar[float] = 1.0

    def __init__(self, trainer: SPTSearchTrainer) -> None:
        self.trainer = trainer

    def sample(self, size: int) -> torch.Tensor | None:
        """The gates, (size or 1, candidates), of a training batch of `size` examples; None for sigmoid(alpha)."""
        return None

    def penalty(self) -> torch.Tensor | float:
        """A penalty that is added to the loss of a training batch."""
        return 0.0

    def trained(self) -> torch.Tensor:
        """The gates that training has led to, (candidates,)."""
        return self.trainer.tuner.gate_values()

    def backward_architecture(
        self, model: nn.Module, batch: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> None:
        """Add grad_alpha L_architecture of a micro-batch to the gradients of alpha."""
        self.trainer.backward("architecture", model, batch, num_items_in_batch)
