"""What a head learns for the label of an example, and what its scores say: the reverse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax

from sptune.errors import InputError
from sptune.tasks.splits import Example
from sptune.tasks.task import MULTI_LABEL, REGRESSION, Task


def targets(task: Task, examples: Sequence[Example]) -> list[int] | list[float] | list[list[float]] | None:
    """The target of each example: a class index, 0 or 1 for each label, or a standardized number.

    Args:
        task: the task.
        examples: all with labels, or all without.

    Returns:
        None if the examples have no labels.

    Raises:
        InputError: a label is not a class of the task, or only some examples have labels.
    """
    check_targets(task, examples)
    labels = [example.label for example in examples if example.label is not None]
    if len(labels) < len(examples):
        return None
    if task.kind == REGRESSION:
        mean, deviation = _scale(task)
        return [(number - mean) / deviation for number in labels]
    if task.kind == MULTI_LABEL:
        return [[float(label in own) for label in task.labels] for own in labels]
    index = {label: number for number, label in enumerate(task.labels)}
    return [index[label] for label in labels]


def check_targets(task: Task, examples: Sequence[Example]) -> None:
    """Check that all examples have labels of the task, or none has one.

    Raises:
        InputError: as `targets`.
    """
    unlabeled, first = 0, ""
    known = set(task.labels)
    for example in examples:
        if example.label is None:
            unlabeled, first = unlabeled + 1, first or example.where
        elif task.kind != REGRESSION:
            labels = example.label if isinstance(example.label, tuple) else (example.label,)
            for label in labels:
                if label not in known:
                    raise InputError(
                        f"{example.where}: label {label!r} is not a class of task {task.name!r} "
                        f"({', '.join(task.labels)}); correct the data or the task's labels."
                    )
    if 0 < unlabeled < len(examples):
        raise InputError(
            f"{unlabeled} of {len(examples)} examples have no label (the first: {first}); label all or none."
        )


def numbers(task: Task, scores: np.ndarray) -> np.ndarray:
    """The numbers (n,) in the unit of the data, of a regression's scores (n, 1) or targets (n,)."""
    mean, deviation = _scale(task)
    return np.asarray(scores, dtype=np.float64).reshape(len(scores)) * deviation + mean


def probabilities(task: Task, scores: np.ndarray) -> np.ndarray:
    """The probability of each class or label, from scores (n, classes): softmax, or of several labels the sigmoid."""
    exact = np.asarray(scores, dtype=np.float64)
    return expit(exact) if task.kind == MULTI_LABEL else softmax(exact, axis=-1)


def has_labels(task: Task, scores: np.ndarray) -> np.ndarray:
    """Whether each of several labels is predicted, (n, labels), from their scores."""
    return probabilities(task, scores) >= task.threshold


def _scale(task: Task) -> tuple[float, float]:
    assert task.target_mean is not None
    assert task.target_std is not None
    return task.target_mean, task.target_std
