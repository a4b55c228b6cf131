"""Gates: the learnable probability of the prompt at each candidate layer (method section 3)."""

from __future__ import annotations

import torch

from sptune.errors import InputError


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """The same values in float32, or in their own dtype if it is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def gate_logits(values: torch.Tensor) -> torch.Tensor:
    """The alpha with sigmoid(alpha) = `values`; 0 and 1 become -inf and +inf, so that they are exact.

    Args:
        values: gate values in [0, 1], any shape.

    Raises:
        InputError: a value lies outside [0, 1].
    """
    if bool(((values < 0) | (values > 1) | values.isnan()).any()):
        raise InputError(f"Gate values must lie in [0, 1], got {values.tolist()}.")
    return torch.logit(values)
