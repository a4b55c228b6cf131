"""The loss of a run on classes, with its class weights, from its options and its training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sptune.errors import InputError
from sptune.runs.options.run_options import RunOptions
from sptune.tasks import Example, Task
from sptune.training.class_loss import DEFAULT_FOCAL_GAMMA, ClassLoss, balanced_weights


def run_class_loss(task: Task, options: RunOptions, examples: Sequence[Example]) -> ClassLoss | None:
    """The loss that the options ask for; None for the task's own.

    Args:
        task: the task.
        options: of the run.
        examples: the training data.

    Raises:
        InputError: a weight is of no class.
    """
    focal = options.loss == "focal"
    if options.class_weights is None and not focal:
        return None
    gamma = DEFAULT_FOCAL_GAMMA if options.focal_gamma is None else options.focal_gamma
    return ClassLoss(_weights(task, options.class_weights, examples), gamma if focal else 0.0)


def _weights(
    task: Task, given: str | Mapping[str, float] | None, examples: Sequence[Example]
) -> tuple[float, ...] | None:
    if given is None:
        return None
    if isinstance(given, str):
        counts = Counter(example.label for example in examples)
        return balanced_weights([counts[label] for label in task.labels])
    unknown = [label for label in given if label not in task.labels]
    if unknown:
        raise InputError(
            f"class_weights: {unknown[0]!r} is not a class of task {task.name!r}; classes are {', '.join(task.labels)}."
        )
    return tuple(given.get(label, 1.0) for label in task.labels)
