"""`WeightedProbabilities`: scaled attention to prompts in families whose masks cannot carry a bias on the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sptune.modeling.forward_context import ThreadState
from sptune.modeling.gates import at_least_float32


class _FloatingMask(ThreadState):
    """The mask on its way from an attention's arguments to its probabilities."""

    weights: torch.Tensor | None = None


class WeightedProbabilities:
    """Weights attention probabilities by a floating mask.

    softmax(logits + log w) = w softmax(logits) / sum(w softmax(logits)). The mask holds w at the prompts' keys and 0 or
    1 elsewhere; a boolean mask leaves the attention unchanged. The mask is passed as an argument of the block, so that
    gradient checkpointing recomputes with the same mask.

    Args:
        attention: a self-attention module with an argument `attention_mask` and a `dropout` on its probabilities.
    """

    def __init__(self, attention: nn.Module) -> None:
        self.mask = _FloatingMask()
        dropout: Any = attention.dropout
        self._handles = [
            attention.register_forward_pre_hook(self._catch_mask, with_kwargs=True),
            dropout.register_forward_pre_hook(self._weight),
        ]

    def remove(self) -> None:
        """Remove the hooks from the attention."""
        for handle in self._handles:
            handle.remove()

    def _catch_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]
        self.mask.weights = mask if mask.is_floating_point() else None

    def _weight(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        weights, self.mask.weights = self.mask.weights, None  # else it would keep the whole graph alive
        if weights is None:
            return None
        probabilities = args[0]
        weighted = at_least_float32(probabilities) * weights  # in half precision, small sums have no finite gradient
        total = weighted.sum(-1, keepdim=True)
        # A row that sees nothing is padding. It stays as in the backbone: layer norms have no finite gradient at zeros.
        empty = total == 0
        weighted = torch.where(empty, probabilities, weighted / total.masked_fill(empty, 1.0))
        return (weighted.to(probabilities.dtype), *args[1:])
