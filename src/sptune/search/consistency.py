"""Architecture consistency of SPT-DARTS (method section 4): layer masks, and the penalty C of two runs under them."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from sptune.modeling.gates import at_least_float32
from sptune.modeling.problem_types import MULTI_LABEL, REGRESSION


def draw_layer_masks(
    candidates: int, mask_probability: float, size: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent Bernoulli layer masks for two runs, (2, size, candidates): 0 with probability p_c, else 1."""
    return (torch.rand(2 * size, candidates, generator=generator) >= mask_probability).float().view(2, size, candidates)


def symmetric_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(KL(p || q) + KL(q || p)) / 2 with p, q = softmax of the scores, averaged over all but the last dimension.

    Args:
        first: scores of the first run, (..., classes).
        second: scores of the second run, the same shape.
    """
    log_p, log_q = (F.log_softmax(at_least_float32(run), dim=-1) for run in (first, second))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2


def predictions_distance(problem_type: str, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Symmetric KL divergence of two runs' predictions, averaged over examples, for any kind of scores.

    Each label is a Bernoulli variable of its own, (p - q) (logit p - logit q) / 2, averaged over labels as in the loss.
    A number is the mean of a normal distribution with variance 1/2, whose negative log-likelihood is the squared error
    and a constant: (a - b)^2.

    Args:
        problem_type: as in `SPTTrainer`.
        first: scores of the first run, (..., classes).
        second: scores of the second run, the same shape.
    """
    if problem_type not in (MULTI_LABEL, REGRESSION):
        return symmetric_kl(first, second)
    difference = at_least_float32(first) - at_least_float32(second)
    if problem_type == REGRESSION:
        return difference.pow(2).mean()
    p, q = (torch.sigmoid(at_least_float32(run)) for run in (first, second))
    return ((p - q) * difference).mean() / 2


def states_distance(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean squared difference of two runs' final states over the real tokens of each example, averaged over examples.

    Args:
        first: final states of the first run, (batch, length, hidden).
        second: those of the second run, the same shape.
        mask: (batch, length), nonzero at real tokens; None if all are.
    """
    distance = (at_least_float32(first) - at_least_float32(second)).pow(2).mean(-1)
    if mask is None:
        return distance.mean()
    real = mask.to(distance.dtype)
    return ((distance * real).sum(-1) / real.sum(-1).clamp_min(1)).mean()
