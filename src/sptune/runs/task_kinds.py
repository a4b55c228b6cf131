"""What a run is made of by the kind of its task: classes, labels or numbers, or text that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.runs.class_weights import run_class_loss
from sptune.runs.evaluation import Evaluation
from sptune.runs.options.run_options import RunOptions
from sptune.runs.predictions import check_text_columns
from sptune.runs.score_evaluation import ScoreEvaluation
from sptune.runs.text_evaluation import DEFAULT_GENERATED_EXAMPLES, DEFAULT_MAX_NEW_TOKENS, TextEvaluation
from sptune.tasks import Task, TaskEncoder, read_labeled, read_unlabeled
from sptune.tasks.data.generation_data import read_prompts
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_task import GENERATE, GenerationTask
from sptune.tasks.task import MULTI_LABEL, REGRESSION

AnyTask = Task | GenerationTask
AnyEncoder = TaskEncoder | GenerationEncoder


@dataclass(frozen=True)
class Columns:
    """Columns of data that are not called as in training; None for those that are."""

    text_columns: Sequence[str] | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None

    def of(self, task: AnyTask) -> AnyTask:
        """The task with these columns.

        Raises:
            InputError: a column is of another kind of task.
        """
        classes = {"text_columns": self.text_columns, "label_column": self.label_column}
        texts = {
            "prompt_column": self.prompt_column,
            "completion_column": self.completion_column,
            "messages_column": self.messages_column,
        }
        wrong = classes if isinstance(task, GenerationTask) else texts
        given = [f"{name}={column!r}" for name, column in wrong.items() if column is not None]
        if given:
            raise InputError(f"{given[0]} does not fit task {task.name!r}, which {_purpose(task)}; leave it out.")
        if isinstance(task, GenerationTask):
            return task.with_columns({name.replace("column", "field"): column for name, column in texts.items()})
        return task.with_columns(self.text_columns or task.text_fields, self.label_column)


def _purpose(task: AnyTask) -> str:
    """What a task does, as the end of a sentence."""
    if isinstance(task, GenerationTask):
        return "writes text"
    return {MULTI_LABEL: "predicts labels", REGRESSION: "predicts numbers"}.get(task.kind, "predicts classes")


def task_from_document(values: Mapping[str, Any]) -> AnyTask:
    """The task of a task.json.

    Raises:
        InputError: it is not one that sptune wrote.
    """
    return GenerationTask.from_dict(values) if values.get("kind") == GENERATE else Task.from_dict(values)


def build_encoder(task: AnyTask, tokenizer: PreTrainedTokenizerBase, *, max_length: int, causal: bool) -> AnyEncoder:
    """The encoder of a task.

    Raises:
        InputError: the tokenizer does not fit the task.
    """
    if isinstance(task, GenerationTask):
        return GenerationEncoder(task, tokenizer, max_length=max_length)
    return TaskEncoder(task, tokenizer, max_length=max_length, causal=causal)


def run_evaluation(encoder: AnyEncoder, options: RunOptions, examples: Sequence[Any]) -> Evaluation:
    """What a run measures.

    Args:
        encoder: of its task.
        options: its options, resolved.
        examples: the training data.

    Raises:
        InputError: the options name a class that there is not, or a column of texts with the name of a prediction.
    """
    if isinstance(encoder, GenerationEncoder):
        return TextEvaluation(
            encoder.task,
            encoder,
            options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            options.generated_examples,
            options.learning_rate,
        )
    check_text_columns(encoder.task, answered=True)
    rates = {"learning_rate": options.learning_rate, "head_learning_rate": options.head_learning_rate}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    return ScoreEvaluation(encoder.task, encoder, given, run_class_loss(encoder.task, options, examples))


def read_examples(task: AnyTask, file: str | Path, *, answered: bool) -> list[Any]:
    """The checked examples of a file; with what is to be predicted if they are `answered`.

    Raises:
        InputError: all errors of the file in one message.
    """
    if isinstance(task, GenerationTask):
        return read_prompts(file, task, answered=answered)
    if answered:
        how: dict[str, Any] = {"labels": task.labels, "kind": task.kind, "label_separator": task.label_separator}
        return read_labeled(file, task.text_fields, task.label_field, **how)
    return read_unlabeled(file, task.text_fields)


def check_max_new_tokens(task: AnyTask, max_new_tokens: int | None) -> None:
    """Refuse a length of texts that is not positive, or of a task that writes none.

    Raises:
        InputError: which.
    """
    if max_new_tokens is None:
        return
    if not isinstance(task, GenerationTask):
        raise InputError(
            f"max_new_tokens={max_new_tokens} does not fit task {task.name!r}, which {_purpose(task)}; leave it out."
        )
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} is not allowed; give a whole number of at least 1.")


def resolved_task(task: AnyTask, options: RunOptions) -> dict[str, Any]:
    """The options of the task, with every choice made that the user left open."""
    chosen: dict[str, Any] = {"task_kind": task.kind}
    if isinstance(task, GenerationTask):
        return {
            **chosen,
            "prompt_column": task.prompt_field,
            "completion_column": task.completion_field,
            "messages_column": task.messages_field,
            "max_new_tokens": options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            "generated_examples": options.generated_examples or DEFAULT_GENERATED_EXAMPLES,
        }
    if not options.from_hub:
        chosen |= {"text_columns": list(task.text_fields), "label_column": task.label_field}
    if task.kind == MULTI_LABEL:
        chosen |= {"label_threshold": task.threshold, "label_separator": task.label_separator}
    return chosen
