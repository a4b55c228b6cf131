"""What predictions.jsonl and `sptune predict` say of an example, by the kind of task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sptune.errors import InputError
from sptune.tasks import Example, Task
from sptune.tasks.targets import numbers, probabilities
from sptune.tasks.task import MULTI_LABEL, REGRESSION

# Of a number, so many digits below its standard deviation in the training data.
DIGITS = 6


def check_text_columns(task: Task, *, answered: bool) -> None:
    """Refuse a column of texts that a row of the output has for something else.

    Args:
        task: the task, with the columns of the data at hand.
        answered: whether the examples have labels.

    Raises:
        InputError: which.
    """
    written = ["prediction", *(["scores"] if task.kind != REGRESSION else []), *(["label"] if answered else [])]
    for column in task.text_fields:
        if column in written:
            raise InputError(
                f"text_columns={column!r}: the output has a field of this name, which would replace the text; rename "
                "the column in the file."
            )


def prediction_rows(task: Task, examples: Sequence[Example], scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """One entry for each example: its text, its label if it has one, and what is predicted.

    Args:
        task: the task.
        examples: the texts.
        scores: (n, classes), or (n, 1) of a regression.

    Yields:
        "prediction" is the class, the list of labels, or the number; "scores" are the probabilities of the classes or
        labels, and are missing for numbers.
    """
    predicted = _numbers(task, scores) if task.kind == REGRESSION else _names(task, scores)
    for example, prediction in zip(examples, predicted, strict=True):
        known = list(example.label) if isinstance(example.label, tuple) else example.label
        label = {} if known is None else {"label": known}
        yield {**example.fields, **label, **prediction}


def _names(task: Task, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    for own in probabilities(task, scores):
        names: Any = task.labels[int(own.argmax())]
        if task.kind == MULTI_LABEL:
            names = [label for label, value in zip(task.labels, own, strict=True) if value >= task.threshold]
        shown = {name: round(float(value), 6) for name, value in zip(task.labels, own, strict=True)}
        yield {"prediction": names, "scores": shown}


def _numbers(task: Task, scores: np.ndarray) -> Iterator[dict[str, Any]]:
    digits = DIGITS - math.floor(math.log10(task.target_std or 1.0))
    for value in numbers(task, scores):
        yield {"prediction": round(float(value), digits)}
