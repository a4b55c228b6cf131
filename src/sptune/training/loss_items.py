"""`LossItems`: the items that a loss is the mean over, examples or positions with a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class LossItems:
    """Finds and counts the items of a batch.

    Args:
        label_names: names of the columns of labels.
        shifted: whether each position predicts the label of the next one, as in causal models.
    """

    def __init__(self, label_names: list[str], shifted: bool) -> None:
        self.label_name = label_names[0] if len(label_names) == 1 else "labels"
        self.shifted = shifted

    def labels(self, inputs: Mapping[str, Any]) -> Any:
        """The labels of a batch; None without labels."""
        return inputs.get(self.label_name)

    def positions(self, labels: torch.Tensor) -> torch.Tensor:
        """Where a label is predicted, as booleans: a causal model predicts none at the first position.

        Every number is a label; of class indices and tokens -100 means none.
        """
        if labels.is_floating_point():
            return torch.ones_like(labels, dtype=torch.bool)
        if self.shifted and labels.dim() > 1:
            labels = labels[:, 1:]
        return labels != -100

    def count(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Number of items in a batch."""
        labels = self.labels(inputs)
        if isinstance(labels, torch.Tensor):
            return self.positions(labels).sum()
        return torch.tensor(batch_size(inputs))

    def with_count(self, loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The loss function, called with the number of items of its batch, so that its loss is the batch's mean.

        Without any item the number is 1, so that a sum divided by it is 0 and has gradients of 0.
        """

        def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            counted = self.positions(labels).sum().clamp_min(1) if isinstance(labels, torch.Tensor) else None
            return loss_func(outputs, labels, num_items_in_batch=counted)

        return mean_loss


def batch_size(inputs: Mapping[str, Any]) -> int:
    """Number of examples in a batch."""
    return next(value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim() > 0)
