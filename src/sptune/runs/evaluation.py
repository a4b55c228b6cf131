"""`Evaluation`: what a run measures and predicts, which depends on the kind of its task."""

from __future__ import annotations

import abc
import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from sptune.runs.card_parts import CardParts
from sptune.runs.progress import Monitor
from sptune.tasks.metrics import LOWER_IS_BETTER
from sptune.training.trainer import SPTTrainer

Metrics = dict[str, Any]
Rows = list[dict[str, Any]]


class Evaluation(abc.ABC):
    """How networks are measured on a kind of task, in training and at the end of a run.

    Attributes:
        best_metric: the metric on validation data by which training chooses its best weights.
        greater_is_better: whether a greater value of it is better.
        min_batch_size: batches without a backward pass have at least this many examples.
        notes: what the user should know of the loss.
    """

    best_metric: ClassVar[str]
    greater_is_better: ClassVar[bool]
    min_batch_size: ClassVar[int]
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def trainer_options(self) -> dict[str, Any]:
        """Arguments of `SPTTrainer` that say what the loss is and what is measured on validation data."""

    @abc.abstractmethod
    def split_metrics(self, outputs: np.ndarray, labels: np.ndarray) -> Metrics:
        """The metrics of a split.

        Args:
            outputs: what `SPTTrainer.predict` gives for each example, (n, ...).
            labels: the labels of each example, (n, ...).

        Raises:
            SptuneError: the outputs are no numbers.
        """

    @abc.abstractmethod
    def test(
        self, trainer: SPTTrainer, dataset: Any, order: np.ndarray, examples: Sequence[Any], monitor: Monitor
    ) -> tuple[Metrics, Rows]:
        """Metrics of the test data, and what predictions.jsonl holds of them.

        Args:
            trainer: of the final network.
            dataset: the encoded test data.
            order: where each row of `dataset` stands in `examples`.
            examples: the test data.
            monitor: receives progress events.
        """

    @abc.abstractmethod
    def card_parts(self, base: dict[str, Any], metrics: Metrics) -> CardParts:
        """What the model card says of the task.

        Args:
            base: the backbone's description, as task.json keeps it.
            metrics: the content of metrics.json.
        """

    def document(self) -> dict[str, Any]:
        """What task.json holds besides the task and the backbone."""
        return {}

    def gain(self, results: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, float]:
        """By how much each metric that both have is better than that of the linear probe or of zero-shot."""
        pairs = {
            name: (results[name], value)
            for name, value in baseline.items()
            if name != "examples" and isinstance(value, int | float) and isinstance(results[name], int | float)
        }
        signs = {name: -1 if name in LOWER_IS_BETTER else 1 for name in pairs}
        return {name: round(signs[name] * (own - other), 6) for name, (own, other) in pairs.items()}

    def measure(self, trainer: SPTTrainer, dataset: Any) -> Metrics:
        """Metrics of a split, and its number of examples."""
        outputs, labels = trainer_outputs(trainer, dataset)
        return {**self.split_metrics(outputs, labels), "examples": len(labels)}


def trainer_outputs(trainer: SPTTrainer, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and labels of a dataset, one row for each example."""
    with quiet_stdout():
        outcome = trainer.predict(dataset)
    return np.asarray(outcome.predictions), np.asarray(outcome.label_ids)


def quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Keeps what transformers prints of its logs out of the results on standard output."""
    return contextlib.redirect_stdout(io.StringIO())
