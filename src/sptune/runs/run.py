"""The whole job as plain functions.

`fit` reads data, searches, trains, evaluates and saves; `search` and `train` are its halves; `evaluate`, `predict` and
`inspect` use an adapter that a run wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from torch.utils.data import DataLoader

from sptune.errors import InputError
from sptune.modeling.loading import CLASSIFIER, BackboneSpec, is_causal, load_backbone, load_config, load_tokenizer
from sptune.runs import output_folder as outputs
from sptune.runs import stages
from sptune.runs.option_mappings import merged
from sptune.runs.plan import prepare
from sptune.runs.progress import Monitor, processes
from sptune.runs.run_options import ORIGIN, RunOptions
from sptune.runs.stages import SPLITS, Job, by_length, load, predicted, task_metrics
from sptune.search import SearchResult
from sptune.tasks import Example, Task, TaskEncoder, compute_metrics, read_labeled, read_unlabeled
from sptune.training.trainer import SPTTrainer

# Enough of a large training set to see how well it was learned.
MOST_TRAIN_EVALUATED = 500


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


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter with all it needs.

    Attributes:
        model: backbone with the adapter, ready to predict.
        task: the task it was trained for.
        encoder: turns examples into batches, and batches into class scores.
    """

    model: PeftModel
    task: Task
    encoder: TaskEncoder


# -- the job ------------------------------------------------------------------------------------------------------


def fit(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """The main job: find the prompt layers, train prompts at only those, evaluate, and write everything to a folder.

    Args:
        options: what to do; or give the fields of `RunOptions` by name. With `resume=True` and `output_dir`, fields
            that are not given are as they were when the run began.
        monitor: is told about progress.

    Raises:
        InputError: options, data or a backbone that cannot be right.
        SptuneError: the run failed.
    """
    options = _without_layers("fit", _options(options, fields))
    return _run("fit", options, monitor or Monitor())


def search(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """Only the search of `fit`: writes search.json and its pictures.

    Args:
        options, monitor, fields: as in `fit`.

    Raises:
        InputError, SptuneError: as `fit`.
    """
    options = _without_layers("search", _options(options, fields))
    return _run("search", options, monitor or Monitor())


def train(options: RunOptions | None = None, *, monitor: Monitor | None = None, **fields: Any) -> Run:
    """`fit` with given prompt layers instead of a search.

    Args:
        options, monitor, fields: as in `fit`; `prompt_layers` says where prompts go.

    Raises:
        InputError, SptuneError: as `fit`.
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
            f"{verb} searches for the layers, but prompt_layers={options.prompts.prompt_layers!r} is given; leave it out, or "
            "use train."
        )
    return options


def _options(options: RunOptions | None, fields: dict[str, Any]) -> RunOptions:
    if options is not None:
        if fields:
            raise InputError(f"Give RunOptions or fields by name, not both (given: {', '.join(fields)}).")
        return options
    begun = Path(fields.get("output_dir") or "") / outputs.CONFIG_FILE
    if fields.get("resume") and fields.get("output_dir") and begun.exists():
        fields = merged(outputs.read_config(begun), fields)
    return RunOptions.from_mapping(fields, ORIGIN)


def _run(verb: str, options: RunOptions, monitor: Monitor) -> Run:
    plan = prepare(verb, options, monitor)
    folder = plan.folder
    finished = folder / (outputs.SEARCH_FILE if verb == "search" else outputs.METRICS_FILE)
    if options.resume and finished.exists():
        monitor.note(f"{folder} holds a finished run; nothing was left to do.")
        results = outputs.read_json(finished)
        return Run(folder, {} if verb == "search" else results, results["prompt_layers"])
    try:
        job = load(plan)
    except InputError:
        if not options.resume and processes().is_main_process:
            outputs.release_folder(folder)
        raise
    baseline = _baseline(job) if plan.options.head_baseline and verb != "search" else None
    result, network = stages.search(job) if verb != "train" else (None, None)
    if verb == "search":
        assert result is not None
        _clean_up(job)
        return Run(folder, {}, result.prompt_layers)
    final = stages.prompted(job, result, network)
    tuner: Any = final.base_model
    trainer = stages.train(job, final, f"Training prompts at layers {', '.join(map(str, tuner.candidate_layers))}")
    metrics = _evaluate_and_save(job, final, trainer, result, baseline)
    return Run(folder, metrics, metrics["prompt_layers"])


def _baseline(job: Job) -> dict[str, Any]:
    """What prompts must beat: the head alone, or the language model without training."""
    plan = job.plan
    kept = plan.checkpoints / "baseline.json"
    if plan.options.resume and kept.exists():
        return outputs.read_json(kept)
    with plan.clock.stage("baseline"):
        baseline = (stages.head_alone if plan.spec.head == CLASSIFIER else stages.zero_shot)(job)
    if job.is_main:
        outputs.write_json(kept, baseline)
    return baseline


# -- results ------------------------------------------------------------------------------------------------------


def _evaluate_and_save(
    job: Job,
    network: PeftModel,
    trainer: SPTTrainer,
    result: SearchResult | None,
    baseline: dict[str, Any] | None,
) -> dict[str, Any]:
    plan = job.plan
    with plan.clock.stage("evaluate"):
        plan.monitor.stage("Evaluating")
        seen = job.encoded["train"]
        if len(seen) > MOST_TRAIN_EVALUATED:
            seen = seen.shuffle(seed=plan.options.seed).select(range(MOST_TRAIN_EVALUATED))
        results = stages.evaluated(job, trainer, {**job.encoded, "train": seen}, SPLITS[:2])
        scores, labels = predicted(trainer, job.encoded["test"])
        results["test"] = {**task_metrics(plan, scores, labels), "examples": len(labels)}
    best = trainer.state.best_model_checkpoint
    tuner: Any = network.base_model
    metrics: dict[str, Any] = {
        "task": plan.task.name,
        "model": plan.spec.source.model,
        "seed": plan.options.seed,
        "prompt_layers": tuner.candidate_layers,
        **results,
        **({"baseline": baseline, "gain": _gain(results, baseline)} if baseline else {}),
        "parameters": _parameters(network),
        "training": {
            "steps": trainer.state.global_step,
            "best_step": int(best.rsplit("-", 1)[1]) if best else trainer.state.global_step,
            "best_validation_score": trainer.state.best_metric,
        },
    }
    if result is not None:
        scores_by_layer = {str(layer): one for layer, one in zip(result.candidate_layers, result.scores, strict=True)}
        metrics["search"] = {"searcher": result.search.searcher, "steps": result.steps, "scores": scores_by_layer,
                             "remarks": result.remarks}  # fmt: skip
    if job.is_main:
        plan.monitor.stage("Saving")
        document = {"task": plan.task.to_dict(), "backbone": plan.spec.to_dict(), "max_length": plan.options.max_length}
        card = outputs.model_card(
            plan.spec.to_dict(), plan.spec.python(), plan.spec.source.python_tokenizer(), plan.task.to_dict(), metrics
        )
        adapter = plan.folder / outputs.ADAPTER_FOLDER
        metrics["adapter_bytes"] = outputs.write_adapter(adapter, network, document, card)
        rows = _prediction_rows(plan.task, plan.splits.test, scores[np.argsort(job.test_order)])
        outputs.write_json_lines(plan.folder / outputs.PREDICTIONS_FILE, rows)
        seconds = plan.clock.seconds
        metrics["seconds"] = {name: round(value, 2) for name, value in seconds.items()}
        metrics["seconds"]["total"] = round(plan.clock.total, 2)
        metrics["search_share"] = round(seconds.get("search", 0.0) / plan.clock.total, 3)
        metrics["versions"] = outputs.versions()
        outputs.write_json(plan.folder / outputs.METRICS_FILE, metrics)
        _clean_up(job)
    processes().wait_for_everyone()
    return metrics


def _gain(results: dict[str, dict[str, Any]], baseline: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By how much each metric of validation and test is above the baseline's."""
    return {
        split: {
            name: round(results[split][name] - value, 6)
            for name, value in baseline[split].items()
            if name != "examples"
        }
        for split in SPLITS[1:]
    }


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


def _prediction_rows(task: Task, examples: Sequence[Example], scores: np.ndarray) -> Iterator[dict[str, Any]]:
    """One entry for each example: its text, its label if it has one, the predicted class, and a share for each."""
    shares = torch.softmax(torch.as_tensor(scores, dtype=torch.float64), -1).numpy()
    for example, share in zip(examples, shares, strict=True):
        label = {} if example.label is None else {"label": example.label}
        yield {
            **example.fields,
            **label,
            "prediction": task.labels[int(share.argmax())],
            "scores": {name: round(float(value), 6) for name, value in zip(task.labels, share, strict=True)},
        }


def _clean_up(job: Job) -> None:
    if job.is_main and not job.plan.options.keep_checkpoints:
        outputs.remove_checkpoints(job.plan.folder)


# -- using an adapter ---------------------------------------------------------------------------------------------


def load_adapter(adapter: str | Path) -> LoadedAdapter:
    """Load what `fit` or `train` saved, backbone included.

    Args:
        adapter: the adapter folder, or the run's folder around it.

    Raises:
        InputError: not such a folder, or its backbone cannot be loaded.
    """
    folder = _adapter_folder(adapter)
    document = _task_document(folder)
    task, spec = Task.from_dict(document["task"]), BackboneSpec.from_dict(document["backbone"])
    config, tokenizer = load_config(spec.source), load_tokenizer(spec.source)
    backbone, _ = load_backbone(spec, tokenizer)
    model = PeftModel.from_pretrained(backbone, str(folder)).eval()
    encoder = TaskEncoder(task, tokenizer, max_length=document["max_length"], causal=is_causal(config))
    return LoadedAdapter(model.to(processes().device), task, encoder)


def evaluate(
    adapter: str | Path,
    test_file: str | Path,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    monitor: Monitor | None = None,
) -> dict[str, Any]:
    """Score an adapter on labelled data.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        test_file: .jsonl, .csv, .tsv or .parquet.
        text_columns: columns with the text, where they are not called as in training.
        label_column: column with the label, likewise.
        output: where to write the predictions, as JSON Lines; None not to write them.
        overwrite: the file may be there already.
        monitor: is told about progress.

    Returns:
        The task's metrics, and the number of examples.

    Raises:
        InputError: the adapter or the data cannot be right, or `output` must not be written.
    """
    if output is not None:
        outputs.check_file(Path(output), overwrite=overwrite, read=Path(test_file))
    task = _saved_task(adapter, text_columns, label_column)
    examples = read_labeled(test_file, task.text_fields, task.label_field, labels=task.labels)
    scores = _scores(adapter, task, examples, monitor or Monitor())
    if output is not None:
        outputs.write_json_lines(Path(output), _prediction_rows(task, examples, scores))
    labels = [task.labels.index(example.label or "") for example in examples]
    return {**compute_metrics(task, scores.argmax(-1), labels), "examples": len(examples)}


def predict(
    adapter: str | Path,
    input: str | Path,
    output: str | Path | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    overwrite: bool = False,
    monitor: Monitor | None = None,
) -> list[dict[str, Any]]:
    """Predict the class of unlabelled texts.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        input: texts: .jsonl, .csv, .tsv or .parquet.
        output: where to write the predictions, as JSON Lines; None not to write them.
        text_columns: columns with the text, where they are not called as in training.
        overwrite: `output` may be there already.
        monitor: is told about progress.

    Returns:
        One entry for each text: its columns, "prediction" and "scores".

    Raises:
        InputError: the adapter or the data cannot be right, or `output` must not be written.
    """
    if output is not None:
        outputs.check_file(Path(output), overwrite=overwrite, read=Path(input))
    task = _saved_task(adapter, text_columns, None)
    examples = read_unlabeled(input, task.text_fields)
    rows = list(_prediction_rows(task, examples, _scores(adapter, task, examples, monitor or Monitor())))
    if output is not None:
        outputs.write_json_lines(Path(output), rows)
    return rows


def inspect(adapter: str | Path) -> dict[str, Any]:
    """What an adapter is, without loading its backbone.

    Raises:
        InputError: not an SPT adapter.
    """
    folder = _adapter_folder(adapter)
    config = outputs.read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "SPT":
        raise InputError(f"{folder} holds a {config.get('peft_type')} adapter; inspect shows SPT adapters.")
    sizes: dict[str, int] = {}
    for file in folder.glob("adapter_model*.safetensors"):
        with safe_open(file, framework="numpy") as weights:
            sizes.update({key: math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()})  # noqa: SIM118
    generators = sum(size for key, size in sizes.items() if "spt_generator" in key)
    document = _task_document(folder) if (folder / outputs.TASK_FILE).exists() else {}
    names = (
        "placement",
        "prompt_layers",
        "generator",
        "num_virtual_tokens",
        "bottleneck_dim",
        "residual",
        "projection",
        "task_type",
    )
    return {
        "adapter_dir": str(folder),
        "base_model": config.get("base_model_name_or_path"),
        **{name: config.get(name) for name in names},
        "placement": config.get("placement") or "prepend",  # a file from before there was another does not say it
        "parameters": {
            "total": sum(sizes.values()),
            "generators": generators,
            "others": sum(sizes.values()) - generators,
        },
        "adapter_bytes": outputs.weight_bytes(folder),
        "task": document.get("task"),
        "backbone": document.get("backbone"),
    }


def _adapter_folder(adapter: str | Path) -> Path:
    for folder in (Path(adapter), Path(adapter) / outputs.ADAPTER_FOLDER):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise InputError(f"{adapter}: holds no adapter (no adapter_config.json); name the adapter folder that a run wrote.")


def _task_document(folder: Path) -> dict[str, Any]:
    path = folder / outputs.TASK_FILE
    if not path.exists():
        raise InputError(
            f"{folder} holds an adapter without {outputs.TASK_FILE}, which says what its classes and its input are; "
            "use one that sptune fit or train wrote, or load this one in Python with PeftModel.from_pretrained."
        )
    document = outputs.read_json(path)
    missing = {"task", "backbone", "max_length"} - set(document if isinstance(document, dict) else ())
    if missing:
        raise InputError(
            f"{path}: {', '.join(sorted(missing))} missing; use an adapter that sptune fit or train wrote."
        )
    return document


def _saved_task(adapter: str | Path, text_columns: Sequence[str] | None, label_column: str | None) -> Task:
    """The adapter's task, for data with these column names; read before anything heavy is loaded."""
    task = Task.from_dict(_task_document(_adapter_folder(adapter))["task"])
    return task.with_columns(text_columns or task.text_fields, label_column)


def _scores(adapter: str | Path, task: Task, examples: Sequence[Example], monitor: Monitor) -> np.ndarray:
    """The adapter's class scores (n, classes), in the order of the examples."""
    monitor.stage("Loading the adapter and its backbone")
    loaded = load_adapter(adapter)
    own = loaded.encoder
    encoder = TaskEncoder(task, own.tokenizer, max_length=own.max_length, causal=own.causal)
    encoded = encoder.encode(examples)
    order = by_length(encoded)
    loader = DataLoader(encoded.select(order), batch_size=32, collate_fn=encoder.collator)
    monitor.stage("Predicting", len(loader))
    scores = []
    for batch in loader:
        with torch.no_grad():
            on_device = {name: value.to(loaded.model.device) for name, value in batch.items()}
            scores.append(encoder.class_scores(loaded.model, on_device).float().cpu())
        monitor.step()
    return torch.cat(scores).numpy()[np.argsort(order)]
