"""Adapters with random weights, in folders as runs write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from sptune import SPTConfig
from sptune.modeling.loading import (
    CAUSAL_LM,
    CLASSIFIER,
    MASKED_LM,
    BackboneSource,
    BackboneSpec,
    load_backbone,
    load_tokenizer,
)
from sptune.runs.output_folder import write_adapter
from sptune.tasks import Task
from sptune.tasks.generation_task import GenerationTask


def write_tiny_adapter(
    folder: Path,
    model: str,
    seed: int,
    *,
    labels: Sequence[str] = ("good", "bad"),
    text_fields: Sequence[str] = ("text",),
    label_words: Sequence[str] | None = None,
    head: str = MASKED_LM,
    max_length: int = 24,
    **config: Any,
) -> Path:
    """An adapter of a classifier, or with label words of a verbalizer, for the backbone in the folder `model`."""
    options = {"prompt_layers": [seed % 3], "bottleneck_dim": 2 + seed % 3, **config}
    if label_words is None:
        task = Task(folder.name, "classifier", tuple(text_fields), "label", tuple(labels))
        spec = BackboneSpec(BackboneSource(model), CLASSIFIER, "mean", tuple(labels))
        options["task_type"] = "SEQ_CLS"
    else:
        template = " ".join(f"{{{name}}}" for name in text_fields) + " It was [MASK] ."
        task = Task(
            folder.name, "verbalizer", tuple(text_fields), "label", tuple(labels), template, None, tuple(label_words)
        )
        spec = BackboneSpec(BackboneSource(model), head)
    return _write(folder, task, spec, seed, max_length, options)


def write_tiny_predictor(folder: Path, model: str, seed: int, task: Task) -> Path:
    """An adapter of a task with several labels or a number, for the backbone in the folder `model`."""
    spec = BackboneSpec(BackboneSource(model), CLASSIFIER, "mean", task.score_names, task.problem_type)
    return _write(folder, task, spec, seed, 24, {"prompt_layers": [1], "bottleneck_dim": 2, "task_type": "SEQ_CLS"})


def write_answerer(folder: Path, model: str, seed: int, labels: Sequence[str] = ("good", "bad")) -> Path:
    """An adapter whose classes have label words, for a causal language model."""
    words = ("good", "bad", "fine", "dull")[: len(labels)]
    return write_tiny_adapter(folder, model, seed, labels=labels, label_words=words, head="causal_lm")


def write_tiny_writer(
    folder: Path, model: str, seed: int, *, max_length: int = 24, max_new_tokens: int = 6, **config: Any
) -> Path:
    """An adapter that writes text, for the causal language model in the folder `model`."""
    options = {"prompt_layers": [seed % 3], "bottleneck_dim": 2 + seed % 3, "task_type": "CAUSAL_LM", **config}
    spec = BackboneSpec(BackboneSource(model), CAUSAL_LM)
    return _write(folder, GenerationTask(folder.name), spec, seed, max_length, options, max_new_tokens=max_new_tokens)


def _write(
    folder: Path, task: Any, spec: BackboneSpec, seed: int, max_length: int, options: dict[str, Any], **about: Any
) -> Path:
    backbone, _ = load_backbone(spec, load_tokenizer(spec.source))
    network = get_peft_model(backbone, SPTConfig(**options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    document = {"task": task.to_dict(), "backbone": spec.to_dict(), "max_length": max_length, **about}
    write_adapter(folder, network, document, "")
    return folder
