"""The logits at the position where a language model answers, for masked and causal language models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from sptune.errors import InputError
from sptune.modeling.labeled_positions import on_several_devices


def forward_arguments(model: nn.Module) -> set[str] | None:
    """The argument names of the forward of the unwrapped model; None if they are hidden behind `**kwargs`."""
    names = set(inspect.signature(type(unwrap_model(model)).forward).parameters)
    return names if "input_ids" in names else None


def unwrap_model(model: nn.Module) -> nn.Module:
    """The transformers model inside the wrappers of Accelerate, data parallelism and PEFT."""
    model = extract_model_from_parallel(model)
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def classifier_logits(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The logits of a sequence classifier, (batch, classes)."""
    outputs = model(**inputs)
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def causal_answer_logits(model: nn.Module, inputs: Mapping[str, Any], arguments: set[str] | None) -> torch.Tensor:
    """The logits after the last real token of each row; rows may be padded on either side.

    With left padding, the head is computed only at that position if the model supports it.

    Args:
        model: a causal language model.
        inputs: `input_ids` (batch, length) and the other arguments of the model.
        arguments: the argument names of its forward; see `forward_arguments`.

    Returns:
        The logits, (batch, vocabulary).
    """
    inputs = dict(inputs)
    known = arguments or set()
    mask = inputs.get("attention_mask")
    length = inputs["input_ids"].shape[1]
    ends_together = mask is None or bool(mask[:, -1].all())
    padded = mask is not None and not bool(mask.all())
    if padded and "position_ids" in known:
        assert mask is not None
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    elif padded:
        # The model numbers positions itself, which is right only if the text starts at the first.
        inputs = _right_padded(inputs)
        mask, ends_together = inputs["attention_mask"], False
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if ends_together and "logits_to_keep" in known:
        # An index instead of 1: a slice is not contiguous, and the head would copy its weight for every row.
        last_one: Any = torch.tensor([-1], device=inputs["input_ids"].device)
        if on_several_devices(unwrap_model(model)):
            last_one = 1  # an index would be on another device than the states
        return _logits(model(**inputs, **options, logits_to_keep=last_one))[:, -1]
    if mask is None:
        last = inputs["input_ids"].new_full((inputs["input_ids"].shape[0],), length - 1)
    else:
        last = length - 1 - mask.flip(-1).argmax(-1)
    return _at(_logits(model(**inputs, **options)), last, length)


def masked_answer_logits(model: nn.Module, inputs: Mapping[str, Any], mask_token_id: int) -> torch.Tensor:
    """The logits at the mask token of each row; the head is computed only there if possible.

    Masked language models have no argument for this, and the head of a large vocabulary costs several layers' time.

    Args:
        model: a masked language model.
        inputs: `input_ids` (batch, length) with one mask token per row, and the other inputs of the model.
        mask_token_id: the id of the mask token.

    Returns:
        The logits, (batch, vocabulary).
    """
    input_ids = inputs["input_ids"]
    positions, length = (input_ids == mask_token_id).int().argmax(-1), input_ids.shape[1]
    with _output_layer_at(model, positions, length):
        logits = _logits(model(**inputs))
    if logits.shape[1] == 1:
        return logits[:, 0]
    return _at(logits, positions, length)


@contextmanager
def _output_layer_at(model: nn.Module, positions: torch.Tensor, length: int) -> Iterator[None]:
    """Pass only one position of each row to the output layer in all forwards inside the context, if it is known."""
    base = unwrap_model(model)
    get_output_embeddings: Any = getattr(base, "get_output_embeddings", None)
    layer = get_output_embeddings() if get_output_embeddings is not None else None
    if layer is None or _is_compiled(model) or _is_compiled(base):
        yield
        return

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # A replica of a data-parallel model gets part of the batch; it computes all positions.
        if not args or args[0].ndim != 3 or args[0].shape[0] != positions.shape[0] or args[0].shape[1] < length:
            return None
        return (_at(args[0], positions, length).unsqueeze(1), *args[1:])

    handle = layer.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def _at(states: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
    """Select one position per row.

    Args:
        states: (batch, prompts + length, n); prompts may precede the text.
        positions: indices into the text, (batch,).
        length: the length of the text.

    Returns:
        The selected states, (batch, n).
    """
    positions = positions.to(states.device) + states.shape[1] - length
    return states[torch.arange(states.shape[0], device=states.device), positions]


def _right_padded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same rows, padded on the right."""
    mask = inputs["attention_mask"]
    length = mask.shape[1]
    order = (torch.arange(length, device=mask.device) + mask.int().argmax(-1, keepdim=True)) % length
    return {
        name: value.gather(-1, order) if isinstance(value, torch.Tensor) and value.shape == mask.shape else value
        for name, value in inputs.items()
    }


def _logits(outputs: Any) -> torch.Tensor:
    logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    if logits.ndim != 3:
        raise InputError(
            f"The model returns scores of shape {tuple(logits.shape)}, not one per token of its vocabulary; a "
            "verbalizer task needs a language-model head: load it with AutoModelForMaskedLM or AutoModelForCausalLM, "
            "or use a classifier task."
        )
    return logits
