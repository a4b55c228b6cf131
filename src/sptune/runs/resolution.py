"""Defaults that depend on task, backbone and data: learning rates, numbers of steps, lengths."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from sptune.errors import InputError
from sptune.modeling.loading import CLASSIFIER, BackboneSpec
from sptune.prompt_config import DEFAULT_NUM_PROMPT_LAYERS
from sptune.runs.options.option_mappings import DATA_PATHS
from sptune.runs.options.prompt_checks import candidate_layers
from sptune.runs.options.run_options import RunOptions
from sptune.runs.processes import has_bfloat16_kernels, processes
from sptune.runs.task_kinds import AnyTask, resolved_task
from sptune.search.searchers import FIXED_SETTINGS, SEARCHERS
from sptune.training.data_order import steps_of_epoch

DEFAULT_RATE, DEFAULT_STATIC_RATE = 5e-3, 5e-2
DEFAULT_HEAD_RATE, DEFAULT_OWN_HEAD_RATE = 1e-2, 1e-3

# Epochs of the final training, and the minimum and maximum of their steps.
FINAL_EPOCHS, FINAL_STEPS = 5, (150, 2000)
# Of the steps of the final training; a longer search is not shown to choose better (docs/results/search.md).
SEARCH_SHARE, MAX_SEARCH_STEPS = 0.25, 150


def resolved(
    options: RunOptions, task: AnyTask, spec: BackboneSpec, config: PretrainedConfig, max_length: int, examples: int
) -> RunOptions:
    """The options with every choice made that the user left open, so that the same run can be repeated.

    Args:
        options: the user's.
        task: the task as it is trained.
        spec: the backbone and its head.
        config: the configuration of the backbone.
        max_length: the maximum input length in tokens.
        examples: the number of training examples.
    """
    steps = options.max_steps or _final_steps(options, examples)
    chosen: dict[str, Any] = {
        "model": spec.source.model,
        "gguf_file": spec.source.gguf_file,
        "head_pooling": spec.pooling,
        "max_length": max_length,
        "bf16": options.bf16 and has_bfloat16_kernels(),
        "epochs": None,
        "max_steps": steps,
        "learning_rate": options.learning_rate
        or (DEFAULT_STATIC_RATE if options.prompts.generator == "static" else DEFAULT_RATE),
        **resolved_task(task, options),
    }
    if spec.head == CLASSIFIER:
        own = DEFAULT_OWN_HEAD_RATE if spec.pooling == "own" else DEFAULT_HEAD_RATE
        chosen["head_learning_rate"] = options.head_learning_rate or own
    for name in DATA_PATHS:
        path = getattr(options, name)
        if path and Path(path).exists():
            chosen[name] = str(Path(path).resolve())
    if options.prompts.searching:
        chosen |= _resolved_search(options, config, steps)
    made = dataclasses.replace(options, **chosen)
    made.given = options.given
    return made


def _resolved_search(options: RunOptions, config: PretrainedConfig, steps: int) -> dict[str, Any]:
    """The choices of a search that the user left open; `steps` are those of the final training."""
    search = options.search
    candidates = candidate_layers(options, config)
    chosen: dict[str, Any] = {
        "candidate_layers": candidates,
        "selection": search.criterion,
    }
    if SEARCHERS[search.searcher].trained:
        chosen["search_steps"] = options.search_steps or min(math.ceil(SEARCH_SHARE * steps), MAX_SEARCH_STEPS)
    criteria = (search.num_prompt_layers, search.threshold, search.parameter_budget)
    if search.searcher not in FIXED_SETTINGS and criteria == (None, None, None):
        chosen["num_prompt_layers"] = min(DEFAULT_NUM_PROMPT_LAYERS[str(options.prompts.placement)], len(candidates))
    return chosen


def evaluation_interval(eval_steps: int | None, steps: int) -> int:
    """Optimizer steps between two evaluations of a training with this many steps; None for the default."""
    return min(eval_steps or math.ceil(steps / (5 if steps <= 300 else 10)), steps)


def check_early_stopping(options: RunOptions) -> None:
    """Refuse to wait for more evaluations than there are; the options are resolved.

    Raises:
        InputError: early stopping could not save a single step.
    """
    patience, steps = options.early_stopping, options.max_steps or 0
    evaluations = math.ceil(steps / evaluation_interval(options.eval_steps, steps)) if steps else 0
    # The first evaluation is always an improvement, and after the last one training ends anyway.
    if patience is not None and patience > evaluations - 2:
        raise InputError(
            f"early_stopping={patience} cannot end a training of {steps} steps early, which evaluates {evaluations} "
            f"times; lower early_stopping, or evaluate more often (eval_steps={max(1, steps // (4 * patience))})."
        )


def _final_steps(options: RunOptions, examples: int) -> int:
    """Steps of the final training on this many examples."""
    batches = examples / (options.batch_size * processes().num_processes)
    if options.epochs is not None:
        return math.ceil(options.epochs * steps_of_epoch(math.ceil(batches), options.gradient_accumulation_steps))
    steps = math.ceil(FINAL_EPOCHS * batches / options.gradient_accumulation_steps)
    return min(max(FINAL_STEPS[0], steps), FINAL_STEPS[1])
