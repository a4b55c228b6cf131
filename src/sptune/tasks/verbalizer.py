"""Label words: which token stands for a class, and its logit where the answer stands."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.task import Task

logger = logging.getLogger(__name__)

NEUTRAL_CONTEXT = "it"  # stands before a label word where the template has no text of its own there


def label_token_ids(tokenizer: PreTrainedTokenizerBase, task: Task, causal: bool) -> tuple[int, ...]:
    """The token of each class's label word, as it comes out in the template: with a leading space if there is one.

    A word that the tokenizer cuts into several tokens is stood for by the first of them, with a warning.

    Raises:
        InputError: two classes share a token, or a word is unknown to the tokenizer.
    """
    assert task.label_words is not None
    context, spaced = task.answer_context(causal)
    pieces = {word: _tokens_in_context(tokenizer, word.strip(), context, spaced) for word in task.label_words}
    first: dict[int, str] = {}
    for label, word in zip(task.labels, task.label_words, strict=True):
        ids = pieces[word]
        shown = " + ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids)) or "no token"
        if not ids or ids[0] == tokenizer.unk_token_id or not str(tokenizer.decode([ids[0]])).strip():
            raise InputError(
                f"Label word {word!r} of class {label!r} is unknown to this tokenizer ({shown}); choose a common "
                "word that its vocabulary holds."
            )
        if ids[0] in first:
            raise InputError(
                f"Label words {first[ids[0]]!r} and {word!r} begin with the same token of this tokenizer ({shown}), "
                "so their classes cannot be told apart; choose words that begin differently, best of one token each."
            )
        first[ids[0]] = word
        if len(ids) > 1:
            logger.warning(
                "Label word %r of class %r is %d tokens (%s) for this tokenizer; its first token stands for it. A "
                "word of one token may do better.",
                word,
                label,
                len(ids),
                shown,
            )
    return tuple(first)


def _tokens_in_context(tokenizer: PreTrainedTokenizerBase, word: str, context: str, spaced: bool) -> list[int]:
    """The tokens that a word adds behind the template's text."""

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    for before in (context, NEUTRAL_CONTEXT):
        prefix = tokens(before)
        whole = tokens(before + (" " if spaced else "") + word)
        if prefix and whole[: len(prefix)] == prefix:
            return whole[len(prefix) :]
    return tokens(word)


def forward_arguments(model: nn.Module) -> set[str] | None:
    """The names a model's forward takes, wrappers looked through; None where they cannot be seen."""
    names = set(inspect.signature(type(innermost(model)).forward).parameters)
    return names if "input_ids" in names else None


def innermost(model: nn.Module) -> nn.Module:
    """The transformers model beneath Accelerate's, data parallel and PEFT wrappers."""
    model = extract_model_from_parallel(model)
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def causal_answer_logits(
    model: nn.Module, inputs: Mapping[str, torch.Tensor], arguments: set[str] | None
) -> torch.Tensor:
    """The logits after the last real token of each row, (batch, vocabulary); padding may stand on either side.

    With padding in front the head is computed at that one position, if the model can be asked to.
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
        # Without a say in positions, absolute ones are right only if the text begins at the first.
        inputs = _aligned_left(inputs)
        mask, ends_together = inputs["attention_mask"], False
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if ends_together and "logits_to_keep" in known:
        # As an index, not as 1: a slice is not contiguous, and the head would copy its weight for every row.
        last_one = torch.tensor([-1], device=inputs["input_ids"].device)
        return _logits(model(**inputs, **options, logits_to_keep=last_one))[:, -1]
    if mask is None:
        last = inputs["input_ids"].new_full((inputs["input_ids"].shape[0],), length - 1)
    else:
        last = length - 1 - mask.flip(-1).argmax(-1)
    return _at(_logits(model(**inputs, **options)), last, length)


def masked_answer_logits(model: nn.Module, inputs: Mapping[str, torch.Tensor], mask_token_id: int) -> torch.Tensor:
    """The logits at each row's mask token, (batch, vocabulary); nothing else is computed if it can be avoided.

    No masked language model can be asked for one position, and scoring its vocabulary costs as much as several layers.
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
    """Let the layer that makes logits see only one position of each row in the forwards inside, if it is known."""
    base = innermost(model)
    get_output_embeddings: Any = getattr(base, "get_output_embeddings", None)
    layer = get_output_embeddings() if get_output_embeddings is not None else None
    if layer is None or _is_compiled(model) or _is_compiled(base):
        yield
        return

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # A replica of a data-parallel model sees part of the batch only: there, nothing is picked.
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
    """(batch, length or more, n) at one position a row, (batch, n); what stands before the text is not counted."""
    positions = positions.to(states.device) + states.shape[1] - length
    return states[torch.arange(states.shape[0], device=states.device), positions]


def _aligned_left(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same rows with their padding behind them."""
    mask = inputs["attention_mask"]
    length = mask.shape[1]
    order = (torch.arange(length, device=mask.device) + mask.int().argmax(-1, keepdim=True)) % length
    return {name: value.gather(-1, order) if value.shape == mask.shape else value for name, value in inputs.items()}


def _logits(outputs: Any) -> torch.Tensor:
    logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    if logits.ndim != 3:
        raise InputError(
            f"The model gives scores of shape {tuple(logits.shape)}, not one a token of its vocabulary; a verbalizer "
            "task needs a language-model head: load it with AutoModelForMaskedLM or AutoModelForCausalLM, or use a "
            "classifier task."
        )
    return logits
