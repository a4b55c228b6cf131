"""Using an adapter that a run wrote: evaluate, predict, inspect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import safe_open
from torch.utils.data import DataLoader

from sptune import whole_files
from sptune.errors import InputError
from sptune.modeling.loading import BackboneSpec, is_causal, load_backbone, load_config, load_tokenizer
from sptune.runs import output_folder as outputs
from sptune.runs.progress import Monitor, processes
from sptune.runs.run_results import prediction_rows
from sptune.runs.stages import by_length
from sptune.tasks import Example, Task, TaskEncoder, compute_metrics, read_labeled, read_unlabeled


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter with its backbone, task and encoder.

    Attributes:
        model: backbone with the adapter, ready to predict.
        task: the task it was trained for.
        encoder: turns examples into batches, and batches into class scores.
    """

    model: PeftModel
    task: Task
    encoder: TaskEncoder


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
    """Score an adapter on labeled data.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        test_file: .jsonl, .csv, .tsv or .parquet.
        text_columns: columns with the text, where they are not called as in training.
        label_column: column with the label, likewise.
        output: where to write the predictions, as JSON Lines; None not to write them.
        overwrite: the file may be there already.
        monitor: receives progress events.

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
        outputs.write_json_lines(Path(output), prediction_rows(task, examples, scores))
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
    """Predict the class of unlabeled texts.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        input: texts: .jsonl, .csv, .tsv or .parquet.
        output: where to write the predictions, as JSON Lines; None not to write them.
        text_columns: columns with the text, where they are not called as in training.
        overwrite: `output` may be there already.
        monitor: receives progress events.

    Returns:
        One entry for each text: its columns, "prediction" and "scores".

    Raises:
        InputError: the adapter or the data cannot be right, or `output` must not be written.
    """
    if output is not None:
        outputs.check_file(Path(output), overwrite=overwrite, read=Path(input))
    task = _saved_task(adapter, text_columns, None)
    examples = read_unlabeled(input, task.text_fields)
    rows = list(prediction_rows(task, examples, _scores(adapter, task, examples, monitor or Monitor())))
    if output is not None:
        outputs.write_json_lines(Path(output), rows)
    return rows


def inspect(adapter: str | Path) -> dict[str, Any]:
    """What an adapter is, without loading its backbone.

    Raises:
        InputError: not an SPT adapter.
    """
    folder = _adapter_folder(adapter)
    config = whole_files.read_json(folder / "adapter_config.json")
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
    document = whole_files.read_json(path)
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
