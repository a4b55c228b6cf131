"""The task and the data that the options name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.runs.options.run_options import RunOptions
from sptune.runs.task_kinds import AnyTask
from sptune.tasks import BENCHMARK_TASKS, Example, Splits, Task, benchmark_task, load_benchmark, load_splits
from sptune.tasks.data.generation_data import load_prompt_splits
from sptune.tasks.data.lookalike_names import lookalike_key, spell_out
from sptune.tasks.data.number_checks import scale_of
from sptune.tasks.generation_task import GENERATE, GenerationExample, GenerationTask
from sptune.tasks.task import CLASSIFIER, MULTI_LABEL, REGRESSION
from sptune.tasks.template import Template


def read_data(options: RunOptions) -> tuple[AnyTask, Splits[Any]]:
    """The task and its checked data: a benchmark task's from the hub, or the user's own.

    Raises:
        InputError: what is wrong with the data.
    """
    if options.task_kind == GENERATE:
        return _read_prompts(options)
    if options.task_kind in (MULTI_LABEL, REGRESSION):
        return _read_labels_or_numbers(options)
    columns = tuple(options.text_columns)
    if options.task is not None:
        task = benchmark_task(options.task)
        if options.from_hub:
            return task, load_benchmark(
                options.task, dataset=options.dataset, few_shot=options.few_shot, seed=options.seed
            )
        task = task.with_columns(columns or task.text_fields, options.label_column)
        if options.labels:
            task = task.with_labels(options.labels)
        _, splits = _load_own(options, task.text_fields, task.label_field, task.labels)
        return task, splits
    if not columns:
        columns = Template.parse(options.template).fields if options.template else ("text",)
    label_column = options.label_column or "label"
    labels, splits = _load_own(options, columns, label_column, tuple(options.labels) or None)
    name = _data_name(options)
    if options.template is None:
        return Task(name, "classifier", columns, label_column, labels), splits
    if set(options.label_words) != set(labels):
        alike = [
            f"; {spell_out(given, label)} only looks like {spell_out(label, given)}"
            for given in options.label_words
            for label in labels
            if given not in labels and lookalike_key(given) == lookalike_key(label)
        ]
        raise InputError(
            f"The label words (label_words) are those of {', '.join(options.label_words)}, but the classes are "
            f"{', '.join(labels)}{''.join(alike)}; give one word for each class (label_words)."
        )
    words = tuple(options.label_words[label] for label in labels)
    task = Task(name, "verbalizer", columns, label_column, labels, template=options.template, label_words=words)
    return task, splits


def _read_prompts(options: RunOptions) -> tuple[GenerationTask, Splits[GenerationExample]]:
    """Prompts with completions, or conversations."""
    _need_data(options)
    return load_prompt_splits(
        _data_name(options),
        train_file=options.train_file,
        validation_file=options.validation_file,
        test_file=options.test_file,
        dataset=options.dataset,
        dataset_config=options.dataset_config,
        prompt_column=options.prompt_column,
        completion_column=options.completion_column,
        messages_column=options.messages_column,
        few_shot=options.few_shot,
        seed=options.seed,
    )


def _read_labels_or_numbers(options: RunOptions) -> tuple[Task, Splits[Example]]:
    """Texts with any number of labels, or with numbers and the scale of those of the training data."""
    columns, label_column = tuple(options.text_columns) or ("text",), options.label_column or "label"
    labels, splits = _load_own(options, columns, label_column, tuple(options.labels) or None)
    own: dict[str, Any] = {"threshold": options.label_threshold, "label_separator": options.label_separator}
    if options.task_kind == REGRESSION:
        own = dict(zip(("target_mean", "target_std"), scale_of(splits.train), strict=True))
    return Task(_data_name(options), str(options.task_kind), columns, label_column, labels, **own), splits


def _data_name(options: RunOptions) -> str:
    return options.dataset or Path(options.train_file or "").stem


def _need_data(options: RunOptions) -> None:
    if not options.train_file and not options.dataset:
        sources = "a Hugging Face dataset (dataset)"
        if options.task_kind not in (GENERATE, MULTI_LABEL, REGRESSION):
            sources += f", or a benchmark task (task, one of {', '.join(BENCHMARK_TASKS)})"
        raise InputError(
            "There are no data to train on: give a train_file (and validation_file, test_file if you have them) or "
            f"{sources}."
        )


def _load_own(
    options: RunOptions, columns: tuple[str, ...], label_column: str, labels: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Splits[Example]]:
    _need_data(options)
    return load_splits(
        train_file=options.train_file,
        validation_file=options.validation_file,
        test_file=options.test_file,
        dataset=options.dataset,
        dataset_config=options.dataset_config,
        text_columns=columns,
        label_column=label_column,
        labels=labels,
        kind=options.task_kind or CLASSIFIER,
        label_separator=options.label_separator,
        few_shot=options.few_shot,
        seed=options.seed,
    )
