"""`ScoreEvaluation`: what a run measures and predicts with scores of classes, of several labels, or of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sptune.errors import SptuneError
from sptune.runs.card_parts import CardParts, class_parts, label_parts, number_parts
from sptune.runs.evaluation import Evaluation, Metrics, Rows, trainer_outputs
from sptune.runs.predictions import prediction_rows
from sptune.runs.progress import Monitor
from sptune.tasks import Example, Task, TaskEncoder
from sptune.tasks.metrics import score_metrics
from sptune.tasks.task import MULTI_LABEL, REGRESSION
from sptune.training.class_loss import ClassLoss
from sptune.training.trainer import SPTTrainer


class ScoreEvaluation(Evaluation):
    """The metrics of a task by its scores; see `sptune.tasks.metrics.score_metrics`.

    Args:
        task: names classes and metrics.
        encoder: turns examples into batches and batches into class scores.
        rates: the learning rates of a run by option, for messages.
        class_loss: the loss of each example; None for that of the task.
    """

    best_metric = "score"
    greater_is_better = True
    min_batch_size = 32

    def __init__(
        self,
        task: Task,
        encoder: TaskEncoder,
        rates: dict[str, float] | None = None,
        class_loss: ClassLoss | None = None,
    ) -> None:
        self.task = task
        self.encoder = encoder
        self.rates = rates or {}
        self.class_loss = class_loss
        if class_loss is not None and class_loss.weights is not None:
            weights = zip(task.labels, class_loss.weights, strict=True)
            self.notes = (
                f"Weights of the classes: {', '.join(f'{label} {weight:.3g}' for label, weight in weights)}.",
            )

    def trainer_options(self) -> dict[str, Any]:
        """The loss is that of what the class scores mean: a class, several labels or a number."""
        return {
            "class_scores": self.encoder.class_scores,
            "problem_type": self.task.problem_type,
            "class_loss": self.class_loss,
            "compute_metrics": lambda outcome: only_numbers(self.split_metrics(outcome.predictions, outcome.label_ids)),
        }

    def split_metrics(self, outputs: np.ndarray, labels: np.ndarray) -> Metrics:
        """The task's metrics for class scores (n, classes) and the targets of the examples, (n,) or (n, classes)."""
        if not np.isfinite(outputs).all():
            tried = " or ".join(f"{name} (it was {rate:g})" for name, rate in self.rates.items())
            raise SptuneError(f"Training diverged: the scores are no longer numbers. Lower {tried}.")
        return score_metrics(self.task, outputs, labels)

    def test(
        self, trainer: SPTTrainer, dataset: Any, order: np.ndarray, examples: Sequence[Example], monitor: Monitor
    ) -> tuple[Metrics, Rows]:
        """The task's metrics, and what is predicted for each example."""
        scores, labels = trainer_outputs(trainer, dataset)
        metrics = {**self.split_metrics(scores, labels), "examples": len(labels)}
        return metrics, list(prediction_rows(self.task, examples, scores[np.argsort(order)]))

    def card_parts(self, base: dict[str, Any], metrics: Metrics) -> CardParts:
        """What goes in and comes out, and the metrics."""
        parts = {MULTI_LABEL: label_parts, REGRESSION: number_parts}.get(self.task.kind, class_parts)
        return parts(self.task, base, metrics)


def only_numbers(metrics: Metrics) -> dict[str, float]:
    """The metrics that are numbers, as `transformers.Trainer` takes them."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def by_length(encoded: Any) -> np.ndarray:
    """Where the rows of encoded data come from when the shortest stands first."""
    return np.argsort(encoded["length"], kind="stable")
