"""The end of a run: evaluates the final network, and writes the adapter, its metrics and its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from sptune import whole_files
from sptune.runs import output_folder as outputs
from sptune.runs import stages
from sptune.runs.evaluation import Metrics, Rows
from sptune.runs.job import SPLITS, Job
from sptune.runs.model_card import model_card
from sptune.runs.options.run_options import RunOptions
from sptune.runs.peak_memory import peak_memory
from sptune.runs.processes import processes
from sptune.runs.run_report import write_run_report
from sptune.runs.stage_trainers import evaluate_splits
from sptune.search.search_result import SearchResult
from sptune.training.trainer import SPTTrainer

# Enough of a large training set to see how well it was learned.
MAX_TRAIN_EVALUATED = 500


def evaluate_and_save(
    job: Job,
    network: PeftModel,
    trainer: SPTTrainer,
    result: SearchResult | None,
    baseline: dict[str, Any] | None,
) -> dict[str, Any]:
    """Evaluate the final network, and write adapter, predictions and metrics.

    Args:
        job: the plan with its data.
        network: the final network, trained.
        trainer: its trainer.
        result: of the search; None if there was none.
        baseline: results of the linear probe or of zero-shot; None if they were not asked for.

    Returns:
        The content of metrics.json.
    """
    plan = job.plan
    with plan.clock.stage("evaluate"):
        plan.monitor.stage("Evaluating")
        results, rows = _evaluate(job, trainer)
    metrics = _metrics(job, network, trainer, results, baseline)
    if result is not None:
        metrics["search"] = {
            "searcher": result.search.searcher,
            "steps": result.steps,
            "scores": dict(zip(map(str, result.candidate_layers), result.to_dict()["scores"], strict=True)),
            "remarks": result.remarks,
        }
    _track(job, metrics)
    if job.is_main:
        plan.monitor.stage("Saving")
        plan.check_folder()
        _save(job, network, metrics, rows, training_history(trainer))
        plan.check_folder()
        clean_up(plan.folder, plan.options)
    processes().wait_for_everyone()
    return metrics


def _track(job: Job, metrics: Metrics) -> None:
    """Send the metrics of the final network, and of what it is compared with, to the trackers of the run."""
    baseline, step = metrics.get("baseline"), metrics["training"]["steps"]
    compared = {"final": metrics} | ({baseline["kind"].replace(" ", "_"): baseline} if baseline else {})
    for stage, results in compared.items():
        for split, prefix in zip(SPLITS[1:], ("eval", "test"), strict=True):
            values = {f"{prefix}_{name}": value for name, value in results[split].items() if name != "examples"}
            job.plan.tracker.log(stage, values, step)


def _evaluate(job: Job, trainer: SPTTrainer) -> tuple[dict[str, Metrics], Rows]:
    """Metrics by split, and the predictions of the test data."""
    plan = job.plan
    seen = job.encoded["train"]
    if len(seen) > MAX_TRAIN_EVALUATED:
        seen = seen.shuffle(seed=plan.options.seed).select(range(MAX_TRAIN_EVALUATED))
    results = evaluate_splits(job, trainer, {**job.encoded, "train": seen}, SPLITS[:2])
    test, rows = plan.evaluation.test(trainer, job.encoded["test"], job.test_order, plan.splits.test, plan.monitor)
    return {**results, "test": test}, rows


def _metrics(
    job: Job,
    network: PeftModel,
    trainer: SPTTrainer,
    results: dict[str, dict[str, Any]],
    baseline: dict[str, Any] | None,
) -> dict[str, Any]:
    best = trainer.state.best_model_checkpoint
    tuner: Any = network.base_model
    return {
        "task": job.plan.task.name,
        "model": job.plan.spec.source.model,
        "seed": job.plan.options.seed,
        "prompt_layers": tuner.generator_layers,
        **results,
        **({"baseline": baseline, "gain": _gain(job, results, baseline)} if baseline else {}),
        "parameters": _parameters(network),
        "training": {
            "steps": trainer.state.global_step,
            "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
            f"best_validation_{job.plan.evaluation.best_metric}": trainer.state.best_metric,
            **({"stopped_early": stages.has_stopped_early(trainer)} if job.plan.options.early_stopping else {}),
        },
    }


def training_history(trainer: SPTTrainer) -> list[dict[str, Any]]:
    """Losses over the steps of a training: what training_history.json holds.

    Returns:
        Entries with "step" and "training_loss", the mean since the entry before, or "validation_loss".
    """
    names = {"loss": "training_loss", "eval_loss": "validation_loss"}
    return [
        {"step": entry["step"], names[name]: entry[name]}
        for entry in trainer.state.log_history
        for name in names.keys() & entry.keys()
    ]


def _save(job: Job, network: PeftModel, metrics: Metrics, rows: Rows, history: Rows) -> None:
    """Write adapter, predictions, losses and metrics, to which sizes and times are added; and the report of all."""
    plan = job.plan
    document = {
        "task": plan.task.to_dict(),
        "backbone": plan.spec.to_dict(),
        "max_length": plan.options.max_length,
        **plan.evaluation.document(),
    }
    base = plan.spec.to_dict()
    card = model_card(
        base,
        plan.spec.python(),
        plan.spec.source.python_tokenizer(),
        plan.task.name,
        plan.evaluation.card_parts(base, metrics),
        metrics,
    )
    adapter = plan.folder / outputs.ADAPTER_FOLDER
    metrics["adapter_bytes"] = outputs.write_adapter(adapter, network, document, card)
    outputs.write_json_lines(plan.folder / outputs.PREDICTIONS_FILE, rows)
    whole_files.write_json(plan.folder / outputs.HISTORY_FILE, history)
    seconds = plan.clock.seconds
    metrics["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
    metrics["seconds"]["total"] = round(plan.clock.total, 2)
    metrics["search_share"] = round(seconds.get("search", 0.0) / plan.clock.total, 3)
    metrics["peak_memory"] = peak_memory()
    metrics["versions"] = outputs.versions()
    whole_files.write_json(plan.folder / outputs.METRICS_FILE, metrics)
    write_run_report(plan.folder)


def _gain(job: Job, results: dict[str, Metrics], baseline: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By how much each metric of validation and test is better than that of the linear probe or of zero-shot."""
    return {split: job.plan.evaluation.gain(results[split], baseline[split]) for split in SPLITS[1:]}


def _parameters(network: PeftModel) -> dict[str, int]:
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    tuner: Any = network.base_model
    generators = sum(parameter.numel() for own in tuner.generator_parameters().values() for parameter in own)
    # PEFT keeps the untrained head beside the trained one.
    frozen = sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad and "original_module" not in name
    )
    return {
        "trainable": trainable,
        "generators": generators,
        "head": trainable - generators,
        "total": trainable + frozen,
    }


def clean_up(folder: Path, options: RunOptions) -> None:
    """Remove the checkpoints of a finished run, unless they were asked for."""
    if processes().is_main_process and not options.keep_checkpoints:
        outputs.remove_checkpoints(folder)
