"""What the scores of a sequence classifier mean, by transformers' `problem_type`, and the loss of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from sptune.errors import InputError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def check_problem_type(problem_type: str | None, label_smoothing: float = 0.0) -> None:
    """Refuse what is not one of `PROBLEM_TYPES`, or None, and label smoothing of what is not one class.

    Raises:
        InputError: which ones are, or that the two do not go together.
    """
    if label_smoothing and problem_type in (MULTI_LABEL, REGRESSION):
        raise InputError(
            f"label_smoothing_factor={label_smoothing} has no effect with problem_type={problem_type!r}; leave one of "
            "the two out."
        )
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise InputError(f"problem_type={problem_type!r} is not allowed; choose one of {', '.join(PROBLEM_TYPES)}.")


def problem_loss(
    problem_type: str,
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of scores: cross entropy, the mean binary cross entropy over the labels, or the squared error.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        scores: (batch, classes); of a regression (batch, 1).
        labels: class indices (batch,); for several labels 0 and 1 as floats (batch, classes); for a regression numbers
            (batch,) or (batch, 1).
        reduction: "mean" for the mean over examples, "none" for the loss of each, (batch,).
        label_smoothing: of the cross entropy.
    """
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(scores, labels, reduction=reduction, label_smoothing=label_smoothing)
    if problem_type == REGRESSION:
        scores = scores.squeeze(-1)
        return F.mse_loss(scores, labels.to(scores).reshape(scores.shape), reduction=reduction)
    losses = F.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none").mean(-1)
    return losses.mean() if reduction == "mean" else losses
