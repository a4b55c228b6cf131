"""`ClassEvaluation`: what a run measures and predicts in text classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sptune.errors import SptuneError
from sptune.runs.card_parts import CardParts, class_parts
from sptune.runs.evaluation import Evaluation, Metrics, Rows, trainer_outputs
from sptune.runs.progress import Monitor
from sptune.tasks import Example, Task, TaskEncoder, compute_metrics
from sptune.training.trainer import SPTTrainer


class ClassEvaluation(Evaluation):
    """Accuracy and F1 of class scores.

    Args:
        task: names classes and metrics.
        encoder: turns examples into batches and batches into class scores.
        rates: the learning rates of a run by option, for messages.
    """

    best_metric = "score"
    greater_is_better = True
    min_batch_size = 32

    def __init__(self, task: Task, encoder: TaskEncoder, rates: dict[str, float] | None = None) -> None:
        self.task = task
        self.encoder = encoder
        self.rates = rates or {}

    def trainer_options(self) -> dict[str, Any]:
        """The loss is the cross entropy of class scores."""
        return {
            "class_scores": self.encoder.class_scores,
            "compute_metrics": lambda outcome: self.split_metrics(outcome.predictions, outcome.label_ids),
        }

    def split_metrics(self, outputs: np.ndarray, labels: np.ndarray) -> Metrics:
        """The task's metrics for class scores (n, classes) and class indices (n,)."""
        if not np.isfinite(outputs).all():
            tried = " or ".join(f"{name} (it was {rate:g})" for name, rate in self.rates.items())
            raise SptuneError(f"Training diverged: the class scores are no longer numbers. Lower {tried}.")
        return compute_metrics(self.task, outputs.argmax(-1), labels)

    def test(
        self, trainer: SPTTrainer, dataset: Any, order: np.ndarray, examples: Sequence[Example], monitor: Monitor
    ) -> tuple[Metrics, Rows]:
        """The task's metrics, and the predicted class of each example."""
        scores, labels = trainer_outputs(trainer, dataset)
        metrics = {**self.split_metrics(scores, labels), "examples": len(labels)}
        return metrics, list(prediction_rows(self.task, examples, scores[np.argsort(order)]))

    def card_parts(self, base: dict[str, Any], metrics: Metrics) -> CardParts:
        """Classes or label words, and accuracies."""
        return class_parts(self.task, base, metrics)


def by_length(encoded: Any) -> np.ndarray:
    """Where the rows of encoded data come from when the shortest stands first."""
    return np.argsort(encoded["length"], kind="stable")


def prediction_rows(task: Task, examples: Sequence[Example], scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """One entry for each example: its text, its label if it has one, the predicted class, and a probability for each.

    Args:
        task: the task, which names the classes.
        examples: the texts.
        scores: class scores (n, classes).
    """
    probabilities = torch.softmax(torch.as_tensor(scores, dtype=torch.float64), -1).numpy()
    for example, probability in zip(examples, probabilities, strict=True):
        label = {} if example.label is None else {"label": example.label}
        yield {
            **example.fields,
            **label,
            "prediction": task.labels[int(probability.argmax())],
            "scores": {name: round(float(value), 6) for name, value in zip(task.labels, probability, strict=True)},
        }
