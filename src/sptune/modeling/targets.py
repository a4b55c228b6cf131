"""The target tokens in a causal language model's text; prompts must not be made from them."""

from __future__ import annotations

import torch
from torch import nn


def before_first_target(labels: torch.Tensor) -> torch.Tensor:
    """The tokens before each row's first target.

    Tokens after a target have attended to it, so prompts made from them would reveal it.

    Args:
        labels: (batch, length), -100 at tokens that are no targets.

    Returns:
        (batch, length) bool.
    """
    return (labels != -100).cumsum(-1) == 0


def has_language_model_head(model: nn.Module) -> bool:
    """Whether a transformers model predicts tokens."""
    embeddings = getattr(model, "get_output_embeddings", None)
    return embeddings is not None and embeddings() is not None
