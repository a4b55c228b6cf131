"""Everything of a run that comes before weights are loaded: data are checked and all choices left open are made."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sptune.runs import output_folder as outputs
from sptune.config import SPTConfig, default_candidates
from sptune.prompt_config import DEFAULT_NUM_PROMPT_LAYERS
from sptune.errors import InputError
from sptune.modeling.generators import build_generator
from sptune.modeling.loading import (
    CLASSIFIER,
    BackboneSource,
    BackboneSpec,
    check_supported,
    find_source,
    is_causal,
    language_head,
    load_config,
    load_tokenizer,
    longest_input,
    text_config,
)
from sptune.runs.run_options import PLACES, RunOptions
from sptune.modeling.mean_pooling import MeanPooledConfig
from sptune.runs.progress import Clock, Monitor, has_bfloat16_kernels, processes
from sptune.search.search_config import SearchConfig
from sptune.search.searchers import FIXED_SETTINGS, SEARCHERS
from sptune.search.searchers.exhaustive import check_sets
from sptune.search.layer_selection import fixed_layers, layers_to_find
from sptune.tasks import (
    BENCHMARK_TASKS,
    Splits,
    Task,
    TaskEncoder,
    benchmark_task,
    load_benchmark,
    load_splits,
)
from sptune.tasks.data.lookalike_names import lookalike_key, spell_out
from sptune.tasks.template import Template

DEFAULT_RATE, DEFAULT_STATIC_RATE = 5e-3, 5e-2
DEFAULT_HEAD_RATE, DEFAULT_OWN_HEAD_RATE = 1e-2, 1e-3

# Epochs of the final training, and the fewest and most steps they may come to.
FINAL_EPOCHS, FINAL_STEPS = 5, (150, 2000)
# Of the steps of the final training; a longer search is not shown to choose better (docs/results/search.md).
SEARCH_SHARE, MOST_SEARCH_STEPS = 0.25, 150


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        options: with every choice made.
        folder: the output folder.
        task: what is learned.
        splits: checked data.
        spec: the backbone and its head.
        tokenizer: the backbone's.
        encoder: turns examples into batches and batches into class scores.
        clock: counts seconds by stage.
        monitor: is told about progress.
    """

    options: RunOptions
    folder: Path
    task: Task
    splits: Splits
    spec: BackboneSpec
    tokenizer: PreTrainedTokenizerBase
    encoder: TaskEncoder
    clock: Clock
    monitor: Monitor

    @property
    def checkpoints(self) -> Path:
        """Where the trainers keep what `--resume` needs."""
        return self.folder / outputs.CHECKPOINTS_FOLDER

    @property
    def max_steps(self) -> int:
        """Optimiser steps of the final training."""
        assert self.options.max_steps is not None
        return self.options.max_steps

    @property
    def search_steps(self) -> int:
        """Optimiser steps of the search."""
        assert self.options.search_steps is not None
        return self.options.search_steps


def prepare(verb: str, options: RunOptions, monitor: Monitor) -> Plan:
    """Read and check all but the weights, and claim the output folder.

    Raises:
        InputError: options, data, backbone or output folder that cannot be right.
    """
    if not any((options.model, options.gguf_file, options.train_file, options.data, options.task)):
        raise InputError(
            "model is missing, and so are the data: name a hub id or a local folder (model=...), and a train_file, a "
            "data set (data=...) or a benchmark task (task=...)."
        )
    folder = options.folder()
    outputs.check_folder(folder, resume=options.resume, overwrite=options.overwrite)
    if options.overwrite:
        outputs.check_sources(folder, [getattr(options, name) for name in PLACES])
    source = find_source(options.model, options.gguf_file, options.revision, options.dtype)
    is_main = processes().is_main_process
    clock = Clock()
    search_config(options)
    with clock.stage("data"):
        monitor.stage("Reading the data")
        task, splits = read_data(options)
    with clock.stage("load"):
        monitor.stage(f"Reading the configuration and the tokenizer of {source.model}")
        config = load_config(source)
        check_supported(config, options.placement, options.layers_path)
        check_prompts(options, config)
        spec = _choose_head(task, options, config, source)
        if spec.head == CLASSIFIER:
            if task.kind == "verbalizer" and options.task_kind is None:
                monitor.note(
                    f"{source.model} brings no language-model head that could say label words; a classifier is trained."
                )
            task = task.as_classifier()
        tokenizer = load_tokenizer(source)
        max_length = longest_input(config, tokenizer, options.max_length)
        encoder = TaskEncoder(task, tokenizer, max_length=max_length, causal=is_causal(config))
    for note in splits.notes:
        monitor.note(note)
    asked_for_bf16 = options.bf16
    options = _resolved(options, task, spec, config, max_length, len(splits.train))
    if asked_for_bf16 and not options.bf16:
        monitor.note(
            "bf16 is left off: PyTorch has no bfloat16 kernels for this CPU, and it would take many times as long."
        )
    if options.dtype == "bfloat16" and not has_bfloat16_kernels():
        monitor.note(
            "dtype is bfloat16, for which PyTorch has no kernels on this CPU: float32 takes a fraction of the time."
        )
    if is_main:
        _claim(verb, folder, options)
        clock.keep(folder / outputs.CHECKPOINTS_FOLDER / "seconds.json", options.resume)
    processes().wait_for_everyone()
    return Plan(options, folder, task, splits, spec, tokenizer, encoder, clock, monitor)


def search_config(options: RunOptions) -> SearchConfig:
    """How to search; what the options leave open is as `SearchConfig` has it.

    Raises:
        InputError: a value is not allowed.
    """
    names = [one.name for one in dataclasses.fields(SearchConfig) if hasattr(options, one.name)]
    return SearchConfig(**{name: getattr(options, name) for name in names if getattr(options, name) is not None})


def read_data(options: RunOptions) -> tuple[Task, Splits]:
    """The task and its checked data: a benchmark task's from the hub, or the user's own.

    Raises:
        InputError: what is wrong with the data.
    """
    columns = tuple(options.text_columns)
    if options.task is not None:
        task = benchmark_task(options.task)
        if options.from_hub:
            return task, load_benchmark(options.task, dataset=options.data, few_shot=options.few_shot, seed=options.seed)
        task = task.with_columns(columns or task.text_fields, options.label_column)
        if options.labels:
            task = task.with_labels(options.labels)
        _, splits = _load_own(options, task.text_fields, task.label_field, task.labels)
        return task, splits
    if not columns:
        columns = Template.parse(options.template).fields if options.template else ("text",)
    label_column = options.label_column or "label"
    labels, splits = _load_own(options, columns, label_column, tuple(options.labels) or None)
    name = options.data or Path(options.train_file or "").stem
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
            f"label_words are given for {', '.join(options.label_words)}, but the classes are {', '.join(labels)}"
            f"{''.join(alike)}; give one word for each class (label_words)."
        )
    words = tuple(options.label_words[label] for label in labels)
    task = Task(name, "verbalizer", columns, label_column, labels, template=options.template, label_words=words)
    return task, splits


def _load_own(
    options: RunOptions, columns: tuple[str, ...], label_column: str, labels: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Splits]:
    if not options.train_file and not options.data:
        raise InputError(
            "There are no data to train on: give a train_file (and validation_file, test_file if you have them), a "
            f"data set by name (--data), or a benchmark task (--task, one of {', '.join(BENCHMARK_TASKS)})."
        )
    return load_splits(
        train_file=options.train_file,
        validation_file=options.validation_file,
        test_file=options.test_file,
        dataset=options.data,
        dataset_config=options.data_config,
        text_columns=columns,
        label_column=label_column,
        labels=labels,
        few_shot=options.few_shot,
        seed=options.seed,
    )


def _choose_head(task: Task, options: RunOptions, config: PretrainedConfig, source: BackboneSource) -> BackboneSpec:
    """The head that the task is read from: the language model's where both have one, else a classifier's."""
    head = language_head(config, source)
    if task.kind == "verbalizer" and options.task_kind != "classifier":
        if head is not None:
            if options.head_pooling is not None:
                raise InputError(
                    f"head_pooling={options.head_pooling!r} is for classifiers, and this is a verbalizer task, which "
                    "trains no head; leave it out, or add task_kind=classifier."
                )
            return BackboneSpec(source, head)
        if options.task_kind == "verbalizer" or options.template:
            raise InputError(
                f"{source.model} brings no language-model head, which a verbalizer task reads; choose a masked or "
                "causal language model, or make it a classifier (task_kind=classifier)."
            )
    elif options.task_kind == "verbalizer":
        raise InputError("task_kind='verbalizer' needs a template and label words (template, label_words).")
    pooling = options.head_pooling or ("own" if is_causal(config) else "mean")
    if isinstance(config, MeanPooledConfig):  # whose own pooling is the mean
        pooling = "mean"
    return BackboneSpec(source, CLASSIFIER, pooling, task.labels)


def _candidates(options: RunOptions, config: PretrainedConfig) -> list[int]:
    count = text_config(config).num_hidden_layers
    return options.candidate_layers or (
        list(range(count)) if options.searcher in FIXED_SETTINGS else default_candidates(count, str(options.placement))
    )


def check_prompts(options: RunOptions, config: PretrainedConfig) -> None:
    """Refuse layers, generators and a search that do not fit the backbone or each other.

    Raises:
        InputError: which, and what would fit.
    """
    search = search_config(options)
    _check_layers(options, config)
    size = _generator_size(options, config)
    if options.prompt_layers is None and options.searcher not in FIXED_SETTINGS and options.threshold is None:
        candidates = len(_candidates(options, config))
        number = layers_to_find(search, size, candidates, options.placement or "")
        if options.searcher == "exhaustive":
            check_sets(number, candidates)


def _check_layers(options: RunOptions, config: PretrainedConfig) -> None:
    """Refuses layers that the backbone has not, and more layers than may be chosen from."""
    count = text_config(config).num_hidden_layers
    for name in ("candidate_layers", "prompt_layers"):
        layers = getattr(options, name)
        if isinstance(layers, list) and not all(0 <= layer < count for layer in layers):
            raise InputError(f"{name}={layers} names a layer that is not there; this backbone has 0 to {count - 1}.")
    wanted, candidates = options.num_prompt_layers, _candidates(options, config)
    if options.prompt_layers is None and options.searcher in FIXED_SETTINGS:
        fixed_layers(options.searcher, candidates, count)
    if wanted is not None and wanted > len(candidates):
        remedy = "name more candidate_layers" if len(candidates) < count else f"choose 1 to {count}"
        raise InputError(
            f"num_prompt_layers={wanted} is more than the {len(candidates)} layers there are to choose from; {remedy}."
        )


def prompt_config(options: RunOptions, prompt_layers: Any, **fields: Any) -> SPTConfig:
    """The prompts that the options ask for.

    Args:
        options: the run's.
        prompt_layers: where they are to be; "search" for all candidates, with gates.
        fields: of `SPTConfig`, besides those that are options by the same name.

    Raises:
        InputError: a value is not allowed.
    """
    names = ("placement", "generator", "bottleneck_dim", "projection", "phm_dim", "activation", "num_virtual_tokens",
             "residual", "mixing_rate", "visibility", "layers_path")  # fmt: skip
    try:
        return SPTConfig(
            prompt_layers=prompt_layers,
            candidate_layers=options.candidate_layers if prompt_layers == "search" else None,
            **fields,
            **{name: getattr(options, name) for name in names},
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _generator_size(options: RunOptions, config: PretrainedConfig) -> int:
    """Parameters of one layer's generator; refuses one that does not fit the backbone."""
    try:
        with torch.device("meta"):
            prompts = prompt_config(options, options.prompt_layers or "search")
            generator = build_generator(prompts, text_config(config).hidden_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    return sum(parameter.numel() for parameter in generator.parameters())


def _resolved(
    options: RunOptions, task: Task, spec: BackboneSpec, config: PretrainedConfig, max_length: int, examples: int
) -> RunOptions:
    """The options with every choice made that the user left open, so that the same run can be asked for again."""
    batch = options.batch_size * options.gradient_accumulation_steps * processes().num_processes
    steps = options.max_steps or _final_steps(options.epochs, examples / batch)
    chosen: dict[str, Any] = {
        "model": spec.source.model,
        "gguf_file": spec.source.gguf_file,
        "head_pooling": spec.pooling,
        "task_kind": task.kind,
        "max_length": max_length,
        "bf16": options.bf16 and has_bfloat16_kernels(),
        "epochs": None,
        "max_steps": steps,
        "learning_rate": options.learning_rate
        or (DEFAULT_STATIC_RATE if options.generator == "static" else DEFAULT_RATE),
        "head_learning_rate": options.head_learning_rate
        or (DEFAULT_OWN_HEAD_RATE if spec.pooling == "own" else DEFAULT_HEAD_RATE),
    }
    if not options.from_hub:
        chosen |= {"text_columns": list(task.text_fields), "label_column": task.label_field}
    for name in ("train_file", "validation_file", "test_file", "data"):
        path = getattr(options, name)
        if path and Path(path).exists():
            chosen[name] = str(Path(path).resolve())
    if options.prompt_layers is None:
        chosen |= _resolved_search(options, config, steps)
    return dataclasses.replace(options, **chosen)


def _resolved_search(options: RunOptions, config: PretrainedConfig, steps: int) -> dict[str, Any]:
    """The choices of a search that the user left open; `steps` are those of the final training."""
    search = search_config(options)
    candidates = _candidates(options, config)
    chosen: dict[str, Any] = {
        "candidate_layers": candidates,
        "search_steps": options.search_steps or min(math.ceil(SEARCH_SHARE * steps), MOST_SEARCH_STEPS),
        "selection": search.criterion,
        **{name: getattr(search, name) for name in SEARCHERS[search.searcher].settings if hasattr(options, name)},
    }
    selections = (options.num_prompt_layers, options.threshold, options.parameter_budget)
    if options.searcher not in FIXED_SETTINGS and selections == (None, None, None):
        chosen["num_prompt_layers"] = min(DEFAULT_NUM_PROMPT_LAYERS[options.placement or ""], len(candidates))
    return chosen


def _final_steps(epochs: float | None, batches: float) -> int:
    """Steps of the final training; `batches` make an epoch."""
    if epochs is not None:
        return max(1, math.ceil(epochs * batches))
    return min(max(FINAL_STEPS[0], math.ceil(FINAL_EPOCHS * batches)), FINAL_STEPS[1])


def _claim(verb: str, folder: Path, options: RunOptions) -> None:
    """Takes the folder and writes config.yaml, or checks that the run to resume is the one that was begun."""
    path = folder / outputs.CONFIG_FILE
    if options.resume:
        begun = outputs.read_config(path)
        if begun.get("command") != verb:
            raise InputError(f"{folder} holds a run of 'sptune {begun.get('command')}'; resume it with that command.")
        changed = [
            f"{name} was {begun.get(name)!r} and is now {value!r}"
            for name, value in options.lasting().items()
            if begun.get(name) != value
        ]
        if changed:
            raise InputError(
                f"{folder}: the run cannot be resumed with other options ({'; '.join(changed)}); give the same "
                "options, or begin anew with --overwrite."
            )
    outputs.claim_folder(folder, resume=options.resume, overwrite=options.overwrite)
    if not options.resume:
        files = [file for file in (options.train_file, options.validation_file, options.test_file) if file]
        outputs.write_config(path, verb, options.lasting(), files)
