"""Metrics of what is predicted, by the kind of task; accuracy and F1 of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sptune.errors import InputError
from sptune.tasks.label_metrics import label_metrics
from sptune.tasks.number_metrics import number_metrics
from sptune.tasks.targets import numbers, probabilities
from sptune.tasks.task import DEFAULT_THRESHOLD, MULTI_LABEL, REGRESSION, Task

# Metrics that are the better the lower they are.
LOWER_IS_BETTER = ("hamming_loss", "rmse", "mae", "loss", "perplexity")


def score_metrics(task: Task, scores: np.ndarray, targets: np.ndarray | Sequence[Any]) -> dict[str, Any]:
    """Compute the metrics of a task from scores.

    Args:
        task: the task.
        scores: (n, classes), or (n, 1) of a regression.
        targets: what the head learns for each example; see `sptune.tasks.targets.targets`.

    Returns:
        Those of `compute_metrics`, `label_metrics` or `number_metrics`, and "score", the mean of the metrics of the
        task.

    Raises:
        InputError: there are no examples, or the shapes differ.
    """
    if task.kind not in (MULTI_LABEL, REGRESSION):
        return compute_metrics(task, scores.argmax(-1), targets)
    values: dict[str, Any]
    if task.kind == REGRESSION:
        values = {**number_metrics(numbers(task, scores), numbers(task, np.asarray(targets)))}
    else:
        threshold = task.threshold or DEFAULT_THRESHOLD
        values = label_metrics(task.labels, probabilities(task, scores), np.asarray(targets), threshold)
    return {**values, "score": float(np.mean([values[metric] for metric in task.metrics]))}


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
