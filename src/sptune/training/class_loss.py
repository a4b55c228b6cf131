"""`ClassLoss`: the cross entropy of classes of unequal size, with weights of classes and as focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812

# The best value of Lin et al. (2017), table 1b.
DEFAULT_FOCAL_GAMMA = 2.0
IGNORED = -100


@dataclass(frozen=True)
class ClassLoss:
    """The loss of each example by its class: l(s, y) = w_y (1 - p_y)^gamma (-log p_y) with p = softmax(s).

    With gamma = 0 it is the weighted cross entropy, with gamma > 0 the focal loss of Lin, Goyal, Girshick, He and
    Dollár, "Focal loss for dense object detection", 2017 (equation 5, where the weights are called alpha), with the
    softmax in place of the sigmoid: examples that are predicted well count less.

    The loss of a batch is the sum over its examples divided by their number, as in scikit-learn. It is not divided by
    the sum of their weights, as `torch.nn.CrossEntropyLoss(weight=...)` is, with which the weight of an example would
    depend on the batch it is in.

    Args:
        weights: w, one for each class; None for 1.
        focal_gamma: gamma.
    """

    weights: tuple[float, ...] | None = None
    focal_gamma: float = 0.0

    def __call__(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of each example, (batch,).

        Args:
            scores: (batch, classes), float.
            labels: class indices (batch,); -100 has no loss.
        """
        losses = F.cross_entropy(scores, labels, reduction="none", ignore_index=IGNORED)
        if self.focal_gamma:
            # 1 - p_y from -log p_y, exact where p_y is almost 1; a power below 1 has no derivative at 0.
            others = -torch.expm1(-losses)
            losses = others.clamp_min(torch.finfo(scores.dtype).tiny) ** self.focal_gamma * losses
        if self.weights is not None:
            weights = torch.tensor(self.weights, device=scores.device, dtype=scores.dtype)
            losses = weights[labels.clamp_min(0)] * losses
        return losses


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights with which all classes count the same: n / (k n_c), n examples of k classes, n_c of class c.

    This is scikit-learn's `class_weight="balanced"`, after King and Zeng, "Logistic regression in rare events data",
    2001. Their mean over the examples is 1. A class without examples is not counted in k and has the weight 1.

    Args:
        counts: the number of examples of each class.
    """
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)
