"""`fit`: read data, search, train, evaluate and save; `search` and `train` do a part of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from sptune import whole_files
from sptune.errors import InputError
from sptune.modeling.loading import CLASSIFIER
from sptune.runs import output_folder as outputs
from sptune.runs import stages
from sptune.runs.folder_claim import claim_folder
from sptune.runs.job import Job, load
from sptune.runs.launch import with_batches_shared
from sptune.runs.options.option_mappings import merged
from sptune.runs.options.run_options import ORIGIN, RunOptions
from sptune.runs.plan import Plan, begin, is_finished, prepare
from sptune.runs.processes import processes
from sptune.runs.progress import Monitor
from sptune.runs.publishing import check_hub, create_repository, push_adapter
from sptune.runs.run_report import write_run_report
from sptune.runs.run_results import clean_up, evaluate_and_save
from sptune.runs.stage_trainers import final_arguments


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        output_dir: its folder.
        metrics: the content of metrics.json; empty after `search`.
        prompt_layers: the layers that carry prompts.
    """

    output_dir: Path
    metrics: dict[str, Any]
    prompt_layers: list[int]

    @property
    def adapter_dir(self) -> Path:
        """The adapter folder."""
        return self.output_dir / outputs.ADAPTER_FOLDER


def fit(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """Find the prompt layers, train prompts at only those, evaluate, and write everything to a folder.

    Args:
        options: the options of the run.
        monitor: receives progress events.
        **fields: instead of `options`, its fields by name. With `resume=True` and `output_dir`, fields that are not
            given are as they were when the run began.

    Raises:
        InputError: options, data or a backbone that cannot be right.
        SptuneError: the run failed.
    """
    options = _without_layers("fit", _options(options, fields))
    return _run("fit", options, monitor or Monitor())


def search(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """The search of `fit` alone; writes search.json and its pictures.

    Args:
        options: as in `fit`.
        monitor: as in `fit`.
        **fields: as in `fit`.

    Raises:
        InputError: as `fit`.
        SptuneError: as `fit`.
    """
    options = _without_layers("search", _options(options, fields))
    for name in ("early_stopping", "push_to_hub"):
        if (value := getattr(options, name)) is not None:
            raise InputError(
                f"search trains no final network, so {name}={value!r} has no effect; leave it out, or use fit."
            )
    return _run("search", options, monitor or Monitor())


def train(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """`fit` with given prompt layers instead of a search.

    Args:
        options: as in `fit`; `prompt_layers` says where prompts go.
        monitor: as in `fit`.
        **fields: as in `fit`.

    Raises:
        InputError: as `fit`.
        SptuneError: as `fit`.
    """
    options = _options(options, fields)
    if options.prompts.searching:
        raise InputError(
            "train needs prompt_layers: indices such as 3,5, or all, middle, first. fit searches for them."
        )
    return _run("train", options, monitor or Monitor())


def _without_layers(verb: str, options: RunOptions) -> RunOptions:
    if not options.prompts.searching:
        raise InputError(
            f"{verb} searches for the layers, but prompt_layers={options.prompts.prompt_layers!r} is given; leave it "
            "out, or use train."
        )
    return options


def _options(options: RunOptions | None, fields: dict[str, Any]) -> RunOptions:
    if options is not None:
        if fields:
            raise InputError(f"Give RunOptions or fields by name, not both (given: {', '.join(fields)}).")
        return options
    begun = whole_files.expanded(fields.get("output_dir") or "") / outputs.CONFIG_FILE
    if fields.get("resume") and fields.get("output_dir") and begun.exists():
        fields = merged(with_batches_shared(outputs.read_config(begun)), fields, resumes=True)
    return RunOptions.from_mapping(fields, ORIGIN)


def _run(verb: str, options: RunOptions, monitor: Monitor) -> Run:
    check_hub(options)
    if options.resume and is_finished(verb, options):
        claim = claim_folder(options.folder(), resume=True, overwrite=False) if processes().is_main_process else None
        try:
            return _finished(verb, options, monitor)
        finally:
            if claim is not None:
                claim.end()
    plan = prepare(verb, options, monitor)
    try:
        return _run_locked(verb, plan)
    except InputError:  # its folder may have been taken back
        raise
    except Exception:
        plan.check_folder()  # what fails in a folder that was removed fails for this reason
        raise
    finally:
        if plan.claim is not None:
            plan.claim.end()


def _run_locked(verb: str, plan: Plan) -> Run:
    """Load the backbone and do all stages, unless the run to resume is finished; the output folder is locked."""
    options = plan.options
    if options.resume and (plan.folder / outputs.results_file(verb)).exists():
        return _finished(verb, options, plan.monitor)
    try:
        if options.push_to_hub and processes().is_main_process:
            create_repository(options.push_to_hub, options.hub_private)
        job = load(plan)
    except InputError:
        if plan.claim is not None:
            plan.claim.take_back()
        raise
    arguments = final_arguments(job)
    begin(verb, plan)
    with plan.tracker.running(arguments, job.backbone):
        run = _carry_out(verb, job)
    _push(verb, options, plan.monitor)
    return run


def _finished(verb: str, options: RunOptions, monitor: Monitor) -> Run:
    """What is left to do of a run that has its results: its report if that is missing, and the push."""
    folder = options.folder()
    monitor.note(f"{folder} holds a finished run; nothing was left to do.")
    results = whole_files.read_json(folder / outputs.results_file(verb))
    if verb != "search" and processes().is_main_process and not (folder / outputs.REPORT_FILE).exists():
        write_run_report(folder)
    clean_up(folder, options)
    _push(verb, options, monitor)
    return Run(folder, {} if verb == "search" else results, results["prompt_layers"])


def _carry_out(verb: str, job: Job) -> Run:
    """All stages of a run whose backbone is loaded."""
    plan = job.plan
    baseline = _baseline(job) if plan.options.linear_probe and verb != "search" else None
    result, network = stages.search_layers(job) if verb != "train" else (None, None)
    if verb == "search":
        assert result is not None
        plan.tracker.end(job.backbone, TrainerState(global_step=result.steps))
        clean_up(plan.folder, plan.options)
        return Run(plan.folder, {}, result.prompt_layers)
    final = stages.final_network(job, result, network)
    tuner: Any = final.base_model
    trainer = stages.train_network(
        job, final, f"Training prompts at layers {', '.join(map(str, tuner.generator_layers))}"
    )
    metrics = evaluate_and_save(job, final, trainer, result, baseline)
    plan.tracker.end(final, trainer.state)
    return Run(plan.folder, metrics, metrics["prompt_layers"])


def _push(verb: str, options: RunOptions, monitor: Monitor) -> None:
    """Push the adapter of a finished run, if that is asked for; its options are resolved."""
    folder = options.folder()
    if options.push_to_hub is None or not processes().is_main_process:
        return
    monitor.stage(f"Pushing the adapter to {options.push_to_hub}")
    again = ["sptune", verb, "--output", str(folder), "--resume", "--push-to-hub", options.push_to_hub]
    command = shlex.join([*again, *(["--hub-private"] if options.hub_private else [])])
    monitor.note(f"The adapter is at {push_adapter(folder, options.push_to_hub, options.hub_private, command)}")
    if (backbone := Path(options.model or "")).is_absolute():
        monitor.note(f"Its backbone is the local folder {backbone}: who loads the adapter needs it, too.")


def _baseline(job: Job) -> dict[str, Any]:
    """Results of a linear probe or, of a verbalizer task, of the language model without training (zero-shot)."""
    plan = job.plan
    kept = plan.checkpoints / "baseline.json"
    if plan.options.resume and kept.exists():
        return whole_files.read_json(kept)
    with plan.clock.stage("baseline"):
        results = (stages.linear_probe if plan.spec.head == CLASSIFIER else stages.zero_shot)(job)
    if job.is_main:
        plan.check_folder()
        whole_files.write_json(kept, results)
    return results
