"""Logits of a causal language model only at the positions that predict a label.

The head of a large vocabulary costs as much as several layers, and with labels on completions alone most of its logits
are compared with nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from sptune.modeling.targets import before_first_target

IGNORED = -100
# Inputs with which a position's logits depend on nothing but the tokens.
KNOWN_INPUTS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "labels",
    "source_mask",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
}


def takes_source_mask(model: nn.Module) -> bool:
    """Whether a model, inside wrappers or not, has prompts in front of the text that are made from a source mask."""
    tuner = getattr(extract_model_from_parallel(model), "base_model", None)
    return bool(getattr(tuner, "takes_source_mask", False))


def with_source_mask(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a causal language model with the source mask that their labels imply, if the model takes one.

    Where its forward has no labels, or not those of all positions, the prompt generators would see the targets.
    """
    if inputs.get("labels") is None or "source_mask" in inputs or not takes_source_mask(model):
        return dict(inputs)
    return {**inputs, "source_mask": before_first_target(inputs["labels"])}


def at_labels(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs for logits only at the positions that predict a label in some row, as if the text had no others.

    The model's own loss of them is the one of all positions, and so are its gradients. The last position, which
    predicts nothing, is kept too: labels are those of the next position.

    Args:
        model: the model, inside wrappers or not.
        inputs: of its forward, with `labels` (batch, length), -100 at tokens that are no targets.

    Returns:
        The inputs with `logits_to_keep` (kept,), the indices of the positions, and `labels` (batch, kept); unchanged
        where all positions predict a label, or where the loss is not known to stay the same.
    """
    labels, tokens = inputs.get("labels"), inputs.get("input_ids")
    if labels is None or tokens is None or labels.shape != tokens.shape or labels.dim() != 2:
        return dict(inputs)
    if not inputs.keys() <= KNOWN_INPUTS or not _shifts_kept_logits(model):
        return dict(inputs)
    last = labels.shape[1] - 1
    predicts = (labels[:, 1:] != IGNORED).any(0).nonzero().squeeze(1)
    if len(predicts) == last:
        return dict(inputs)
    kept = torch.cat([predicts, predicts.new_tensor([last])])
    shifted = torch.cat([labels.new_full((len(labels), 1), IGNORED), labels[:, predicts + 1]], dim=1)
    return {**with_source_mask(model, inputs), "labels": shifted, "logits_to_keep": kept}


def on_several_devices(model: nn.Module) -> bool:
    """Whether Accelerate has placed the blocks of a transformers model on several devices.

    Its hooks move the inputs of the model to the first of them, and the states that the head receives are on the last.
    """
    return len({*getattr(model, "hf_device_map", {}).values()}) > 1


def _shifts_kept_logits(model: nn.Module) -> bool:
    """Whether a model computes the logits at given positions, and its loss by comparing each with the next label."""
    if isinstance(model, nn.DataParallel) or hasattr(model, "_orig_mod"):  # compiled for one number of positions
        return False
    backbone = extract_model_from_parallel(model)
    if isinstance(backbone, PeftModel):
        if any(config.is_prompt_learning for config in backbone.peft_config.values()):
            return False  # PEFT lengthens text and labels
        backbone = backbone.get_base_model()
    if on_several_devices(backbone):
        return False  # the positions would be on another device than the states
    forward = inspect.unwrap(type(backbone).forward)
    return (
        forward.__module__.startswith("transformers.")
        and "logits_to_keep" in inspect.signature(forward).parameters
        # Bart's decoder, for example, has a loss of its own, whose labels are not shifted.
        and "loss_function" in forward.__code__.co_names
        and getattr(backbone, "loss_function", None) is ForCausalLMLoss
        and getattr(backbone, "_compiled_call_impl", None) is None
    )
