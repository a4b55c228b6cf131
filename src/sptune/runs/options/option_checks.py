"""Checks of the options of a run that neither `PromptConfig` nor `SearchConfig` makes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sptune.errors import InputError
from sptune.extras import require
from sptune.runs.options.option_mappings import CACHE_OPTIONS
from sptune.search.searchers import SEARCHERS

if TYPE_CHECKING:
    from sptune.runs.options.run_options import RunOptions


def check_backbone_and_data(options: Mapping[str, Any]) -> None:
    """Refuse options that name neither a backbone nor data, or a GGUF file that cannot be read here.

    Args:
        options: by name.

    Raises:
        InputError: what is missing.
    """
    if not any(options.get(name) for name in ("model", "gguf_file", "train_file", "dataset", "task")):
        raise InputError(
            "model is missing, and so are the data: name a hub id or a local folder (model=...), and a train_file, a "
            "Hugging Face dataset (dataset=...) or a benchmark task (task=...)."
        )
    if options.get("gguf_file"):
        require("gguf", "gguf_file")


def check_ranges(options: RunOptions) -> None:
    """Refuse numbers that are out of range.

    Raises:
        InputError: which one.
    """
    for name in (
        "few_shot",
        "max_length",
        "max_new_tokens",
        "generated_examples",
        "search_steps",
        "max_steps",
        "eval_steps",
        "early_stopping",
        "batch_size",
        "gradient_accumulation_steps",
    ):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value} is not allowed; give a whole number of at least 1.")
    for name in ("learning_rate", "head_learning_rate", "epochs"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}={value} is not allowed; give a finite number above 0.")
    for name in ("weight_decay", "activation_cache_memory"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name}={value} is not allowed; give a finite number of at least 0.")


def check_combinations(options: RunOptions) -> None:
    """Refuse options that exclude each other.

    Raises:
        InputError: which ones.
    """
    if options.resume and options.overwrite:
        raise InputError("resume continues a run and overwrite replaces it; give only one of them.")
    if options.epochs is not None and options.max_steps is not None:
        raise InputError(f"epochs={options.epochs} and max_steps={options.max_steps} exclude each other; give one.")
    _check_kind(options)
    _check_class_loss(options)
    _check_data(options)
    _check_cache(options)
    searcher = options.search.searcher
    if options.prompts.searching and options.search_steps is not None and not SEARCHERS[searcher].trained:
        raise InputError(
            f"search_steps={options.search_steps} has no effect with searcher={searcher!r}, which trains nothing; "
            "leave it out, or choose another searcher."
        )
    if options.prompts.visibility == "always" and not SEARCHERS[searcher].relaxed:
        raise InputError(
            f"visibility='always' has no effect with searcher={searcher!r}; leave it out, or search with spt_darts."
        )


# The kind of tasks that write text; the module sptune.tasks.generation_task, which names it, takes seconds to import.
GENERATE = "generate"
# Options of the loss of one class among several.
LOSS_OPTIONS = ("class_weights", "loss", "focal_gamma")
# Options of tasks with several labels.
LABEL_OPTIONS = ("label_separator", "label_threshold")
# Options of tasks with classes, and of tasks that write text.
CLASS_OPTIONS = (
    "task", "text_columns", "label_column", "labels", "template", "label_words", "head_pooling", "head_learning_rate",
    *LOSS_OPTIONS, *LABEL_OPTIONS,
)  # fmt: skip
TEXT_OPTIONS = ("prompt_column", "completion_column", "messages_column", "max_new_tokens", "generated_examples")


def _check_kind(options: RunOptions) -> None:
    """Refuse options of another kind of task."""
    _check_labels(options)
    writes = options.task_kind == GENERATE
    for name in CLASS_OPTIONS if writes else TEXT_OPTIONS:
        value = getattr(options, name)
        if value is None or value in ([], {}):
            continue
        if writes:
            raise InputError(
                f"{name}={value!r} is of tasks that predict classes, and task_kind='generate' writes text; leave it "
                "out. The data are in the columns prompt and completion (prompt_column, completion_column), or in "
                "messages (messages_column)."
            )
        raise InputError(f"{name}={value!r} is of models that write text; add task_kind='generate', or leave it out.")
    if options.messages_column and (options.prompt_column or options.completion_column):
        raise InputError(
            f"messages_column={options.messages_column!r} holds both prompt and completion; leave out prompt_column "
            "and completion_column, or leave out messages_column."
        )


def _check_labels(options: RunOptions) -> None:
    """Refuse options of one class or of several labels that do not fit what is predicted."""
    kind = options.task_kind
    given = [name for name in LABEL_OPTIONS if getattr(options, name) is not None]
    if given and kind not in ("multi_label", GENERATE):
        value = getattr(options, given[0])
        raise InputError(
            f"{given[0]}={value!r} is of examples with several labels; add task_kind='multi_label', or leave it out."
        )
    threshold = options.label_threshold
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"label_threshold={threshold} is not allowed; give a probability above 0 and below 1.")
    if options.label_separator == "":
        raise InputError("label_separator is empty; give what stands between labels, such as ';'.")
    _check_label_words(options)
    if kind not in ("multi_label", "regression"):
        return
    for name in LOSS_OPTIONS:
        if getattr(options, name) is not None:
            raise InputError(
                f"{name}={getattr(options, name)!r} is of examples with one class, and task_kind={kind!r} has a loss "
                "of its own; leave it out."
            )
    if options.task:
        raise InputError(
            f"task={options.task!r} predicts one class for each text, and task_kind={kind!r} predicts "
            f"{WITH_HEADS[kind]}; leave one of them out."
        )
    if options.labels and kind == "regression":
        raise InputError(
            f"labels={options.labels!r} names classes, and task_kind='regression' predicts a number; leave it out, or "
            "choose another task_kind."
        )


# What is predicted with a trained head, by the kind of task.
WITH_HEADS = {"classifier": "a class", "multi_label": "any number of labels", "regression": "a number"}


def _check_label_words(options: RunOptions) -> None:
    """Refuse label words of tasks that are predicted with a trained head."""
    kind = options.task_kind
    for name in ("template", "label_words") if kind in WITH_HEADS else ():
        if getattr(options, name):
            raise InputError(
                f"{name}={getattr(options, name)!r} is of label words, one of which is the answer, and "
                f"task_kind={kind!r} predicts {WITH_HEADS[str(kind)]} with a trained head; leave one of them out."
            )


BALANCED = "balanced"


def _check_class_loss(options: RunOptions) -> None:
    """Refuse weights and focusing parameters that cannot be right.

    Raises:
        InputError: which.
    """
    weights, gamma = options.class_weights, options.focal_gamma
    if isinstance(weights, str) and weights != BALANCED:
        raise InputError(
            f"class_weights={weights!r} is not allowed; give {BALANCED!r}, or a weight for classes, such as "
            "{'positive': 2}."
        )
    for label, weight in weights.items() if isinstance(weights, Mapping) else ():
        if not (weight > 0 and math.isfinite(weight)):
            raise InputError(f"class_weights: {label!r} has the weight {weight:g}; give a number above 0.")
    if gamma is not None and options.loss != "focal":
        raise InputError(f"focal_gamma={gamma} has no effect without loss='focal'; add that, or leave it out.")
    if gamma is not None and not (gamma >= 0 and math.isfinite(gamma)):
        raise InputError(f"focal_gamma={gamma} is not allowed; give 0 or more, such as 2.")


def _check_data(options: RunOptions) -> None:
    if options.dataset and (options.train_file or options.validation_file or options.test_file):
        raise InputError(
            f"dataset={options.dataset!r} has its own splits; leave out train_file, validation_file and test_file, or "
            "leave out dataset."
        )
    if options.dataset_config and options.train_file and not options.dataset:
        raise InputError(
            f"dataset_config={options.dataset_config!r} is of a Hugging Face dataset, and "
            f"train_file={options.train_file!r} has no configurations; leave one of them out."
        )
    if options.task and options.template:
        raise InputError(f"task={options.task!r} has its own template; leave out one of task and template.")
    if options.from_hub:
        own = ("validation_file", "test_file", "dataset_config", "label_column", "labels")
        given = [name for name in own if getattr(options, name)]
        if given:
            raise InputError(
                f"{given[0]}={getattr(options, given[0])!r} is of your own data, and task={options.task!r} without a "
                "train_file takes the hub's; give a train_file too (or dataset and text_columns), or leave it out."
            )
    if bool(options.template) != bool(options.label_words):
        there, missing = ("template", "label_words") if options.template else ("label_words", "template")
        raise InputError(f"{there} is given without {missing}; a verbalizer needs both, a classifier neither.")


def _check_cache(options: RunOptions) -> None:
    """Refuse settings of an activation cache that is off, but for a run that is resumed without its cache."""
    if options.activation_cache or options.resume:
        return
    default = {one.name: one.default for one in dataclasses.fields(options)}
    for name in CACHE_OPTIONS:
        if getattr(options, name) != default[name]:
            raise InputError(
                f"{name}={getattr(options, name)!r} has no effect with activation_cache=False; leave one of them out."
            )
