"""`Plan`: a run before weights are loaded. Reads and checks the data, and fills in options that are left open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.modeling.loading import (
    CAUSAL_LM,
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
from sptune.modeling.mean_pooling import MeanPooledConfig
from sptune.runs import output_folder as outputs
from sptune.runs.evaluation import Evaluation
from sptune.runs.folder_claim import FolderClaim, claim_folder
from sptune.runs.launch import check_launch, check_search_launch, with_batches_shared
from sptune.runs.options.option_checks import check_backbone_and_data
from sptune.runs.options.option_mappings import DATA_PATHS, INPUT_PATHS
from sptune.runs.options.prompt_checks import check_prompts
from sptune.runs.options.run_options import RunOptions
from sptune.runs.processes import has_bfloat16_kernels, processes
from sptune.runs.progress import Monitor
from sptune.runs.resolution import check_early_stopping, resolved
from sptune.runs.stage_clock import StageClock
from sptune.runs.task_data import read_data
from sptune.runs.task_kinds import AnyEncoder, AnyTask, build_encoder, run_evaluation
from sptune.runs.tracking import RunTracker
from sptune.search.searchers import SEARCHERS
from sptune.tasks import Splits, Task
from sptune.tasks.generation_task import GenerationTask
from sptune.tasks.task import PROBLEM_TYPES


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
        encoder: turns examples into batches.
        evaluation: what is measured and predicted.
        clock: counts seconds by stage.
        monitor: receives progress events.
        tracker: receives losses, gates and scores.
        claim: keeps other runs out of the folder; None in processes that do not write.
    """

    options: RunOptions
    folder: Path
    task: AnyTask
    splits: Splits[Any]
    spec: BackboneSpec
    tokenizer: PreTrainedTokenizerBase
    encoder: AnyEncoder
    evaluation: Evaluation
    clock: StageClock
    monitor: Monitor
    tracker: RunTracker
    claim: FolderClaim | None

    @property
    def checkpoints(self) -> Path:
        """Where the trainers keep what `--resume` needs."""
        return self.folder / outputs.CHECKPOINTS_FOLDER

    def check_folder(self) -> None:
        """Refuse to go on in an output folder that was taken away.

        Raises:
            SptuneError: it was.
        """
        if self.claim is not None:
            self.claim.check()

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the final training."""
        assert self.options.max_steps is not None
        return self.options.max_steps

    @property
    def search_steps(self) -> int:
        """Optimizer steps of the search; a searcher that trains nothing takes none of them."""
        return self.options.search_steps or 1


def prepare(verb: str, options: RunOptions, monitor: Monitor) -> Plan:
    """Read and check all but the weights, and claim the output folder.

    Raises:
        InputError: options, data, backbone or output folder that cannot be right.
    """
    check_launch()
    folder = _check_folder(options)
    before = _with_data_of_now(begun_options(verb, folder), folder, options) if options.resume else None
    source = find_source(options.model, options.gguf_file, options.revision, options.dtype)
    is_main = processes().is_main_process
    tracker = RunTracker(options.report_to, folder, is_main)
    clock = StageClock()
    with clock.stage("data"):
        monitor.stage("Reading the data")
        task, splits = read_data(options)
    with clock.stage("load"):
        monitor.stage(f"Reading the configuration and the tokenizer of {source.model}")
        config = load_config(source)
        check_supported(config, options.prompts.placement, options.prompts.layers_path)
        check_prompts(options, config)
        task, spec = _with_head(task, options, config, source, monitor)
        if verb != "compare":  # whose linear probe brings a rate to all tasks, and skips those without a head
            _check_head_rate(options, spec)
        tokenizer = load_tokenizer(source)
        max_length = longest_input(config, tokenizer, options.max_length)
        encoder = build_encoder(task, tokenizer, max_length=max_length, causal=is_causal(config))
    for note in splits.notes:
        monitor.note(note)
    asked_for_bf16 = options.bf16
    options = resolved(options, task, spec, config, max_length, len(splits.train))
    check_early_stopping(options)
    evaluation = run_evaluation(encoder, options, splits.train)
    for note in evaluation.notes:
        monitor.note(note)
    _check_search(options, len(splits.train))
    _note_missing_kernels(options, asked_for_bf16, monitor)
    claim = _claim(folder, options, before) if is_main else None
    processes().wait_for_everyone()
    return Plan(options, folder, task, splits, spec, tokenizer, encoder, evaluation, clock, monitor, tracker, claim)


def _check_folder(options: RunOptions) -> Path:
    """The output folder, unless it or the options are refused before anything is read."""
    check_backbone_and_data(vars(options))
    folder = options.folder()
    outputs.check_folder(folder, resume=options.resume, overwrite=options.overwrite)
    if options.overwrite:
        outputs.check_sources(folder, [getattr(options, name) for name in INPUT_PATHS])
    return folder


def _check_search(options: RunOptions, examples: int) -> None:
    """Refuse a search that the launcher does not allow."""
    spare = len(options.prompts.candidate_layers or ()) - (options.search.num_prompt_layers or 1)
    if options.prompts.searching and SEARCHERS[options.search.searcher].trains(examples, spare):
        check_search_launch()


def _note_missing_kernels(options: RunOptions, asked_for_bf16: bool, monitor: Monitor) -> None:
    """Say what bfloat16 costs on a CPU without kernels for it."""
    if asked_for_bf16 and not options.bf16:
        monitor.note(
            "bf16 is left off: PyTorch has no bfloat16 kernels for this CPU, and it would take many times as long."
        )
    if options.dtype == "bfloat16" and not has_bfloat16_kernels():
        monitor.note(
            "dtype is bfloat16, for which PyTorch has no kernels on this CPU: float32 takes a fraction of the time."
        )


def _with_head(
    task: AnyTask, options: RunOptions, config: PretrainedConfig, source: BackboneSource, monitor: Monitor
) -> tuple[AnyTask, BackboneSpec]:
    """The task as it is trained, and the backbone with the head that it needs."""
    if isinstance(task, GenerationTask):
        return task, _writing_head(config, source)
    spec = _choose_head(task, options, config, source)
    if spec.head != CLASSIFIER:
        return task, spec
    if task.kind == "verbalizer" and options.task_kind is None:
        monitor.note(f"{source.model} has no language-model head for label words; a classifier is trained.")
    return task.as_classifier(), spec


def _writing_head(config: PretrainedConfig, source: BackboneSource) -> BackboneSpec:
    """The head of a causal language model, which writes text."""
    head = language_head(config, source)
    if head != CAUSAL_LM:
        kind = text_config(config).model_type
        raise InputError(
            f"{source.model} is of type {kind!r} and cannot write text: task_kind='generate' needs a causal language "
            "model, such as GPT-2, Llama or Qwen. Name one (model), or predict classes (leave out task_kind)."
        )
    return BackboneSpec(source, head)


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
                f"{source.model} has no language-model head, which a verbalizer task needs; choose a masked or "
                "causal language model, or make it a classifier (task_kind=classifier, without template and "
                "label_words)."
            )
    elif options.task_kind == "verbalizer":
        raise InputError("task_kind='verbalizer' needs a template and label words (template, label_words).")
    pooling = options.head_pooling or ("own" if is_causal(config) else "mean")
    if isinstance(config, MeanPooledConfig):  # whose own pooling is the mean
        pooling = "mean"
    return BackboneSpec(source, CLASSIFIER, pooling, task.score_names, PROBLEM_TYPES.get(task.kind))


def _check_head_rate(options: RunOptions, spec: BackboneSpec) -> None:
    """Refuse a learning rate of a head that is not trained."""
    if options.head_learning_rate is not None and spec.head != CLASSIFIER:
        raise InputError(
            f"head_learning_rate={options.head_learning_rate} is for classifiers, and this is a verbalizer task, which "
            "trains no head; leave it out, or add task_kind=classifier."
        )


def begin(verb: str, plan: Plan) -> None:
    """Make the folder that of this run: remove the run that it replaces, and write config.yaml.

    Until then, a run that cannot be done leaves the one before it as it was.
    """
    folder, options = plan.folder, plan.options
    plan.check_folder()
    if plan.claim is not None:
        if not options.resume:
            plan.claim.clear()
        if not options.resume or _has_moved_data(folder, options):
            path = folder / outputs.CONFIG_FILE
            outputs.write_config(path, verb, options.lasting(), options.given, processes().num_processes)
        plan.clock.keep(plan.checkpoints / "seconds.json", options.resume)
    processes().wait_for_everyone()  # no process may find checkpoints of the run before


def is_finished(verb: str, options: RunOptions) -> bool:
    """Whether the run to resume is finished and no other options are given; reads neither data nor backbone.

    Raises:
        InputError: there is no run to resume, or it is of another command.
    """
    check_launch()
    folder = options.folder()
    outputs.check_folder(folder, resume=True, overwrite=False)
    before = begun_options(verb, folder)
    return (folder / outputs.results_file(verb)).exists() and all(
        value == before[name]
        or (name in INPUT_PATHS and value is not None and str(Path(value).resolve()) == before[name])
        for name, value in options.lasting().items()
    )


def begun_options(verb: str, folder: Path) -> dict[str, Any]:
    """The options that the run in a folder was begun with, flat.

    Raises:
        InputError: it is of another command, or its config.yaml is damaged.
    """
    path = folder / outputs.CONFIG_FILE
    begun = outputs.read_config(path)
    if begun.get("command") != verb:
        raise InputError(f"{folder} holds a run of 'sptune {begun.get('command')}'; resume it with that command.")
    return RunOptions.from_mapping(with_batches_shared(begun), str(path)).lasting()


def _with_data_of_now(before: dict[str, Any], folder: Path, options: RunOptions) -> dict[str, Any]:
    """The options that a run was begun with, with the places where its files of data are now.

    Args:
        before: the options.
        folder: of the run, whose config.yaml has digests of its data.
        options: of now.

    Raises:
        InputError: a file is no longer what it was.
    """
    known = outputs.read_config(folder / outputs.CONFIG_FILE).get("data_files")
    moved = {}
    for name in DATA_PATHS:
        content = known.get(before[name]) if isinstance(known, dict) else None
        given = getattr(options, name)
        if content is None or given is None or not Path(given).is_file():
            continue
        place = str(Path(given).resolve())
        if outputs.content(Path(place)) == content:
            moved[name] = place
        elif place == before[name]:
            raise InputError(
                f"{place}: was changed after the run in {folder} was begun, which cannot be resumed with other data; "
                "bring back what was there, or begin anew with --overwrite."
            )
    return {**before, **moved}


def _has_moved_data(folder: Path, options: RunOptions) -> bool:
    """Whether config.yaml says that the data are elsewhere."""
    begun = outputs.read_config(folder / outputs.CONFIG_FILE)
    return any(begun.get(name) != getattr(options, name) for name in DATA_PATHS)


def _claim(folder: Path, options: RunOptions, before: dict[str, Any] | None) -> FolderClaim:
    """Takes the folder, unless `before`, the options that a run was begun with, are others."""
    if before is not None:
        changed = [
            f"{name} was {before[name]!r} and is now {value!r}"
            for name, value in options.lasting().items()
            if before[name] != value
        ]
        if changed:
            raise InputError(
                f"{folder}: the run cannot be resumed with other options ({'; '.join(changed)}); give the same "
                "options, or begin anew with --overwrite."
            )
    return claim_folder(folder, resume=options.resume, overwrite=options.overwrite)
