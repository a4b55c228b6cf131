"""The whole job as plain functions.

`fit` reads data, searches, trains, evaluates and saves; `search` and `train` are its halves; `evaluate`, `predict` and
`inspect` use an adapter that a run wrote.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from sptune import outputs
from sptune.backbones import find_backbone
from sptune.baseline import HeadAlone, head_scores
from sptune.config import SPTConfig
from sptune.errors import InputError, SptuneError
from sptune.loading import CAUSAL_LM, CLASSIFIER, BackboneSpec, is_causal, load_backbone, load_config, load_tokenizer
from sptune.model import discretize
from sptune.options import ORIGIN, RunOptions
from sptune.prefix_cache import PrefixCacheSettings
from sptune.preparation import Plan, prepare, prompt_config, search_config
from sptune.progress import Monitor, StepCallback, on_cpu, processes
from sptune.search import SearchResult, search_prompt_layers
from sptune.tasks import Example, Task, TaskEncoder, compute_metrics, read_labelled, read_unlabelled
from sptune.training import SPTTrainer, grouping_by_length

WARMUP_SHARE = 0.06
CLIP_NORM = 1.0
SPLITS = ("train", "validation", "test")

# Names that sequence-classification heads have in transformers; PEFT trains and saves them on its own.
HEADS = ("classifier", "score")

# Enough of a large training set to see how well it was learned.
MOST_TRAIN_EVALUATED = 500

Encoded = dict[str, Any]


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


@dataclass(frozen=True)
class _Job:
    """A plan with its frozen backbone and encoded data.

    Attributes:
        absent: modules that the checkpoint did not bring, which must be trained and saved.
        encoded: splits by name; validation and test by length, so that batches hold little padding.
        test_order: where each example of the encoded test data stands in the plan's.
    """

    plan: Plan
    backbone: PreTrainedModel
    absent: list[str]
    encoded: Encoded
    test_order: np.ndarray

    @property
    def is_main(self) -> bool:
        return processes().is_main_process


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
    if options.prompt_layers in (None, "search"):
        raise InputError(
            "train needs prompt_layers: indices such as 3,5, or all, middle, first. fit searches for them."
        )
    return _run("train", options, monitor or Monitor())


def _without_layers(verb: str, options: RunOptions) -> RunOptions:
    if options.prompt_layers is not None:
        raise InputError(
            f"{verb} searches for the layers, but prompt_layers={options.prompt_layers!r} is given; leave it out, or "
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
        fields = {**outputs.read_config(begun), **fields}
    return RunOptions.from_mapping(fields, ORIGIN)


def _run(verb: str, options: RunOptions, monitor: Monitor) -> Run:
    plan = prepare(verb, options, monitor)
    folder = plan.folder
    finished = folder / (outputs.SEARCH_FILE if verb == "search" else outputs.METRICS_FILE)
    if options.resume and finished.exists():
        monitor.note(f"{folder} holds a finished run; nothing was left to do.")
        results = outputs.read_json(finished)
        return Run(folder, {} if verb == "search" else results, results["prompt_layers"])
    job = _load(plan)
    baseline = _baseline(job) if plan.options.head_baseline and verb != "search" else None
    result, network = _search(job) if verb != "train" else (None, None)
    if verb == "search":
        assert result is not None
        _clean_up(job)
        return Run(folder, {}, result.prompt_layers)
    network, trainer = _train(job, result, network)
    metrics = _evaluate_and_save(job, network, trainer, result, baseline)
    return Run(folder, metrics, metrics["prompt_layers"])


def _load(plan: Plan) -> _Job:
    with plan.clock.stage("load"):
        plan.monitor.stage(f"Loading {plan.spec.source.model}")
        set_seed(plan.options.seed)
        backbone, absent = load_backbone(plan.spec, plan.tokenizer)
        find_backbone(backbone, plan.options.layers_path)
    with plan.clock.stage("encode"):
        plan.monitor.stage("Turning text into tokens")
        encoded = {name: plan.encoder.encode(getattr(plan.splits, name)) for name in SPLITS}
        orders = {name: _by_length(encoded[name]) for name in SPLITS[1:]}
        encoded |= {name: encoded[name].select(order) for name, order in orders.items()}
    return _Job(plan, backbone, absent, encoded, orders["test"])


def _by_length(encoded: Any) -> np.ndarray:
    return np.argsort(encoded["length"], kind="stable")


# -- stages -------------------------------------------------------------------------------------------------------


def _baseline(job: _Job) -> dict[str, Any]:
    """The head alone, trained as the prompts are, or what the language model answers without training."""
    plan = job.plan
    kept = plan.checkpoints / "baseline.json"
    if plan.options.resume and kept.exists():
        return outputs.read_json(kept)
    with plan.clock.stage("baseline"):
        if plan.spec.head == CLASSIFIER:
            baseline = _train_head_alone(job)
        else:
            plan.monitor.stage("Asking the language model without any training, for comparison")
            trainer = _trainer(job, job.backbone, _arguments(job, "baseline", 1))
            baseline = {"kind": "zero-shot", "parameters": 0, **_evaluated(job, trainer, job.encoded, SPLITS[1:])}
    if job.is_main:
        outputs.write_json(kept, baseline)
    return baseline


def _train_head_alone(job: _Job) -> dict[str, Any]:
    plan = job.plan
    heads = [name for name in HEADS if isinstance(getattr(job.backbone, name, None), nn.Module)]
    alone = HeadAlone(job.backbone, [*heads, *(name for name in job.absent if name not in heads)])
    arguments = _arguments(job, "baseline", plan.max_steps, learning_rate=plan.options.head_learning_rate)
    encoded, collator = job.encoded, plan.encoder.collator
    if alone.pools_once:
        plan.monitor.stage("Running the backbone once over all texts, for the head alone")
        size = arguments.per_device_eval_batch_size
        encoded = {name: alone.pool(split, collator, size, arguments.device) for name, split in encoded.items()}
    plan.monitor.stage("Training the head alone, for comparison", plan.max_steps)
    set_seed(plan.options.seed)
    trainer = _trainer(job, alone, arguments, encoded, None if alone.pools_once else collator, head_scores)
    with _quiet_stdout():
        trainer.train()
    results = _evaluated(job, trainer, encoded, SPLITS[1:])
    parameters = sum(parameter.numel() for parameter in alone.parameters())
    alone.restore()
    return {"kind": "head alone", "parameters": parameters, **results}


def _search(job: _Job) -> tuple[SearchResult, PeftModel | None]:
    """The search's result; and the search network, unless the result is of a run that was interrupted later."""
    plan = job.plan
    path = plan.folder / outputs.SEARCH_FILE
    if plan.options.resume and path.exists():
        return SearchResult.load(path), None
    with plan.clock.stage("search"):
        set_seed(plan.options.seed)
        network = get_peft_model(job.backbone, _prompt_config(job, "search"))
        plan.monitor.stage("Searching for the prompt layers", plan.search_steps)
        with _quiet_stdout():
            result = search_prompt_layers(
                network,
                job.encoded["train"],
                _arguments(job, "search", plan.search_steps, evaluate=False),
                search_config(plan.options),
                class_scores=plan.encoder.class_scores,
                data_collator=plan.encoder.collator,
                callbacks=[StepCallback(plan.monitor)],
                head_learning_rate=plan.options.head_learning_rate,
                prefix_cache=_prefix_cache(job),
                resume_from_checkpoint=_last_checkpoint(plan, "search"),
                tell=plan.monitor.note,
            )
    if job.is_main:
        for name in outputs.SEARCH_PICTURES if result.history else ():
            with outputs.written_whole(plan.folder / name) as partial:
                result.plot(partial)
        result.save(path)
    return result, network


def _train(job: _Job, result: SearchResult | None, network: PeftModel | None) -> tuple[PeftModel, SPTTrainer]:
    """The final network, trained from fresh weights on all the training data."""
    plan = job.plan
    layers: Any = plan.options.prompt_layers if result is None else result.prompt_layers
    with plan.clock.stage("train"):
        set_seed(plan.options.seed)
        if network is None:
            final: Any = get_peft_model(job.backbone, _prompt_config(job, layers))
        else:
            final = discretize(network, layers)
        trainer = _trainer(job, final, _arguments(job, "train", plan.max_steps))
        shown = ", ".join(map(str, final.base_model.candidate_layers))
        plan.monitor.note(str(trainer.plan_prefix_cache()))
        plan.monitor.stage(f"Training prompts at layers {shown}", plan.max_steps)
        with _quiet_stdout():
            trainer.train(resume_from_checkpoint=_last_checkpoint(plan, "train"))
    return final, trainer


def _prompt_config(job: _Job, prompt_layers: Any) -> SPTConfig:
    options = job.plan.options
    modules = [name for name in job.absent if name not in HEADS]
    return prompt_config(
        options,
        task_type={CLASSIFIER: "SEQ_CLS", CAUSAL_LM: "CAUSAL_LM"}.get(job.plan.spec.head),
        prompt_layers=prompt_layers,
        candidate_layers=options.candidate_layers if prompt_layers == "search" else None,
        modules_to_save=modules or None,
    )


def _arguments(
    job: _Job, name: str, steps: int, *, learning_rate: float | None = None, evaluate: bool = True
) -> TrainingArguments:
    """What all stages share: AdamW, a short warm-up, linear decay, clipping, and the best checkpoint at the end."""
    options = job.plan.options
    interval = math.ceil(steps / (5 if steps <= 300 else 10))
    more: dict[str, Any] = {}
    if evaluate:
        more |= {"eval_strategy": "steps", "eval_steps": interval, "load_best_model_at_end": True}
        more |= {"metric_for_best_model": "score", "greater_is_better": True}
    if name != "baseline":
        more["gradient_checkpointing"] = options.gradient_checkpointing
        more |= grouping_by_length()
    return TrainingArguments(
        output_dir=str(job.plan.checkpoints / name),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=max(options.batch_size, 32),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=learning_rate or options.learning_rate or 0.0,
        weight_decay=options.weight_decay,
        warmup_steps=round(WARMUP_SHARE * steps),
        lr_scheduler_type="linear",
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        use_cpu=on_cpu(),
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not on_cpu(),
        seed=options.seed,
        bf16=options.bf16,
        **more,
    )


def _trainer(
    job: _Job,
    model: nn.Module,
    arguments: TrainingArguments,
    encoded: Encoded | None = None,
    collator: Any = None,
    class_scores: Callable[..., torch.Tensor] | None = None,
) -> SPTTrainer:
    """A trainer on the job's data and scores, or on those of the head alone."""
    if encoded is None:
        encoded, collator, class_scores = job.encoded, job.plan.encoder.collator, job.plan.encoder.class_scores
    return SPTTrainer(
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=collator,
        compute_metrics=lambda outcome: _metrics(job.plan, outcome.predictions, outcome.label_ids),
        class_scores=class_scores,
        head_learning_rate=job.plan.options.head_learning_rate,
        prefix_cache=_prefix_cache(job),
        callbacks=[StepCallback(job.plan.monitor)],
    )


def _prefix_cache(job: _Job) -> PrefixCacheSettings | None:
    options = job.plan.options
    return (
        PrefixCacheSettings(options.prefix_cache_memory, options.prefix_cache_dtype) if options.prefix_cache else None
    )


def _quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Keeps what transformers prints of its logs out of the results on standard output."""
    return contextlib.redirect_stdout(io.StringIO())


def _last_checkpoint(plan: Plan, name: str) -> str | None:
    folder = plan.checkpoints / name
    return get_last_checkpoint(str(folder)) if plan.options.resume and folder.is_dir() else None


# -- results ------------------------------------------------------------------------------------------------------


def _metrics(plan: Plan, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics for class scores (n, classes).

    Raises:
        SptuneError: the scores are no numbers.
    """
    if not np.isfinite(scores).all():
        options = plan.options
        raise SptuneError(
            "Training diverged: the class scores are no longer numbers. Lower learning_rate (it was "
            f"{options.learning_rate:g}) or head_learning_rate (it was {options.head_learning_rate:g})."
        )
    return compute_metrics(plan.task, scores.argmax(-1), labels)


def _predicted(trainer: SPTTrainer, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    with _quiet_stdout():
        outcome = trainer.predict(dataset)
    return np.asarray(outcome.predictions), np.asarray(outcome.label_ids)


def _evaluated(job: _Job, trainer: SPTTrainer, encoded: Encoded, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Metrics of splits, each with its number of examples."""
    results = {}
    for name in names:
        scores, labels = _predicted(trainer, encoded[name])
        results[name] = {**_metrics(job.plan, scores, labels), "examples": len(labels)}
    return results


def _evaluate_and_save(
    job: _Job,
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
        results = _evaluated(job, trainer, {**job.encoded, "train": seen}, SPLITS[:2])
        scores, labels = _predicted(trainer, job.encoded["test"])
        results["test"] = {**_metrics(plan, scores, labels), "examples": len(labels)}
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


def _clean_up(job: _Job) -> None:
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
    monitor: Monitor | None = None,
) -> dict[str, Any]:
    """Score an adapter on labelled data.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        test_file: .jsonl, .csv, .tsv or .parquet.
        text_columns: columns with the text, where they are not called as in training.
        label_column: column with the label, likewise.
        output: where to write the predictions, as JSON Lines; None not to write them.
        monitor: is told about progress.

    Returns:
        The task's metrics, and the number of examples.

    Raises:
        InputError: the adapter or the data cannot be right.
    """
    task = _saved_task(adapter, text_columns, label_column)
    examples = read_labelled(test_file, task.text_fields, task.label_field, labels=task.labels)
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
    monitor: Monitor | None = None,
) -> list[dict[str, Any]]:
    """Predict the class of unlabelled texts.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        input: texts: .jsonl, .csv, .tsv or .parquet.
        output: where to write the predictions, as JSON Lines; None not to write them.
        text_columns: columns with the text, where they are not called as in training.
        monitor: is told about progress.

    Returns:
        One entry for each text: its columns, "prediction" and "scores".

    Raises:
        InputError: the adapter or the data cannot be right.
    """
    task = _saved_task(adapter, text_columns, None)
    examples = read_unlabelled(input, task.text_fields)
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
    names = ("prompt_layers", "generator", "num_virtual_tokens", "bottleneck_dim", "projection", "task_type")
    return {
        "adapter_dir": str(folder),
        "base_model": config.get("base_model_name_or_path"),
        **{name: config.get(name) for name in names},
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
    order = _by_length(encoded)
    loader = DataLoader(encoded.select(order), batch_size=32, collate_fn=encoder.collator)
    monitor.stage("Predicting", len(loader))
    scores = []
    for batch in loader:
        with torch.no_grad():
            on_device = {name: value.to(loaded.model.device) for name, value in batch.items()}
            scores.append(encoder.class_scores(loaded.model, on_device).float().cpu())
        monitor.step()
    return torch.cat(scores).numpy()[np.argsort(order)]
