"""Adapters with random weights, in folders as runs write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

from sptune import SPTConfig
from sptune.modeling.loading import CLASSIFIER, BackboneSource, BackboneSpec, load_backbone, load_tokenizer
from sptune.runs.output_folder import write_adapter
from sptune.tasks import Task


def write_tiny_adapter(
    folder: Path,
    model: str,
    seed: int,
    *,
    labels: Sequence[str] = ("good", "bad"),
    text_fields: Sequence[str] = ("text",),
    label_words: Sequence[str] | None = None,
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
        spec = BackboneSpec(BackboneSource(model), "masked_lm")
    backbone, _ = load_backbone(spec, load_tokenizer(spec.source))
    network = get_peft_model(backbone, SPTConfig(**options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5)
    write_adapter(folder, network, {"task": task.to_dict(), "backbone": spec.to_dict(), "max_length": max_length}, "")
    return folder
