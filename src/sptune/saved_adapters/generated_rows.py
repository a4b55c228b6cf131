"""Texts that several adapters of one backbone write, in batches in which each row has its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel

from sptune.runs.progress import Monitor
from sptune.runs.text_evaluation import DEFAULT_MAX_NEW_TOKENS, generated_row
from sptune.saved_adapters.loaded_adapter import LoadedAdapter
from sptune.tasks.generation_task import GenerationExample
from sptune.tasks.text_generation import generate_texts


def generated_rows(
    model: PeftModel,
    examples: Sequence[tuple[LoadedAdapter, GenerationExample]],
    max_new_tokens: Sequence[int | None],
    monitor: Monitor,
) -> list[dict[str, Any]]:
    """What adapters write after prompts.

    Args:
        model: a backbone with the adapters.
        examples: pairs of an adapter and a prompt.
        max_new_tokens: for each prompt, the maximum length of its text in tokens; None for that of the training.
        monitor: receives progress events.

    Returns:
        For each prompt, a row as `sptune predict` writes it.
    """
    lengths = [
        given or adapter.folder.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        for given, (adapter, _) in zip(max_new_tokens, examples, strict=True)
    ]
    # What rows of a batch must share: the tokens that end a text, and lengths.
    groups: dict[tuple[bool, int, int], list[int]] = {}
    for index, (adapter, _) in enumerate(examples):
        encoder = adapter.text_encoder
        groups.setdefault((encoder.task.is_chat, encoder.max_length, lengths[index]), []).append(index)
    rows: dict[int, dict[str, Any]] = {}
    for (_, _, length), indices in groups.items():
        adapters, prompts = zip(*[examples[index] for index in indices], strict=True)
        keys = [adapter.key for adapter in adapters]
        texts = generate_texts(model, adapters[0].text_encoder, prompts, length, monitor.step, keys)
        for index, text in zip(indices, texts, strict=True):
            rows[index] = generated_row(examples[index][1], text)
    return [rows[index] for index in range(len(examples))]
