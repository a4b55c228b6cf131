"""Accuracy and F1 of class predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sptune.errors import InputError
from sptune.tasks.task import Task


def compute_metrics(
    task: Task, predictions: np.ndarray | Sequence[int], labels: np.ndarray | Sequence[int]
) -> dict[str, float]:
    """Compute the metrics of a task.

    Args:
        task: names the metrics and the positive class of F1.
        predictions: class indices, (n,).
        labels: class indices, (n,).

    Returns:
        "accuracy"; with F1 also "f1" and their "mean"; and "score", the mean of the metrics of the task, by which runs
        are compared.

    Raises:
        InputError: if there are no examples, or the shapes differ.
    """
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != true.shape or not len(true):
        raise InputError(
            f"Metrics need class indices of the same shape (n,) with n > 0; predictions have {predicted.shape}, labels "
            f"{true.shape}. Take the argmax of class scores first."
        )
    values = {"accuracy": float((predicted == true).mean())}
    if "f1" in task.metrics and task.positive_label is not None:
        positive = task.labels.index(task.positive_label)
        hits = int(((predicted == positive) & (true == positive)).sum())
        of_either = int((predicted == positive).sum() + (true == positive).sum())
        values["f1"] = 2 * hits / of_either if of_either else 0.0
        values["mean"] = (values["accuracy"] + values["f1"]) / 2
    values["score"] = float(np.mean([values[metric] for metric in task.metrics]))
    return values
