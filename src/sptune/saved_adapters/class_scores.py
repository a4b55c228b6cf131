"""Class scores of texts by several adapters of one backbone, in batches in which each row has its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from sptune.runs.predictions import prediction_rows
from sptune.runs.progress import Monitor
from sptune.saved_adapters.loaded_adapter import LoadedAdapter
from sptune.tasks import Example, TaskEncoder
from sptune.tasks.task_encoder import warn_cut

BATCH_SIZE = 32
# The number of examples that are tokenized, and sorted by length, at a time.
CHUNK = 4096

Features = dict[str, Any]


def class_scores(
    model: PeftModel, examples: Sequence[tuple[LoadedAdapter, Example]], monitor: Monitor
) -> list[np.ndarray]:
    """The scores of the classes of each example's own task.

    Args:
        model: a backbone with the adapters.
        examples: pairs of an adapter and an example, whose texts are in the order of the task's columns. Texts that are
            too long are cut.
        monitor: receives progress events.

    Returns:
        For each example its scores, (classes,), in the order of the examples.
    """
    scores: list[np.ndarray] = []
    cut: list[tuple[LoadedAdapter, Example]] = []
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        rows, too_long = _tokenize(chunk)
        cut.extend(chunk[row] for row in too_long)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][1]["input_ids"]))
        by_row: dict[int, np.ndarray] = {}
        for first in range(0, len(order), BATCH_SIZE):
            batch = order[first : first + BATCH_SIZE]
            by_row.update(zip(batch, batch_scores(model, [rows[row] for row in batch]), strict=True))
            monitor.step()
        scores.extend(by_row[row] for row in range(len(rows)))
    _warn_cut(cut, examples)
    return scores


def class_rows(
    model: PeftModel, examples: Sequence[tuple[LoadedAdapter, Example]], monitor: Monitor
) -> list[dict[str, Any]]:
    """The rows that `sptune predict` writes of examples; see `class_scores`."""
    scores = class_scores(model, examples, monitor)
    return [
        next(prediction_rows(adapter.class_encoder.task, [example], own[None]))
        for (adapter, example), own in zip(examples, scores, strict=True)
    ]


def batch_scores(model: PeftModel, rows: Sequence[tuple[LoadedAdapter, Features]]) -> list[np.ndarray]:
    """The scores of the classes of each row, in one forward.

    Args:
        model: a backbone with the adapters.
        rows: pairs of an adapter and the tokens of a text.

    Returns:
        For each row its scores, (classes,).
    """
    encoder = rows[0][0].class_encoder  # the tokenizer and the kind of head are those of the backbone
    batch = encoder.collator([features for _, features in rows])
    on_device = {name: value.to(model.device) for name, value in batch.items()}
    with torch.no_grad():
        logits = encoder.answer_logits(model, on_device, adapter_names=[adapter.key for adapter, _ in rows]).cpu()
    return [
        adapter.class_encoder.read_scores(_own_logits(adapter, logits[row : row + 1], len(rows)))[0].numpy()
        for row, (adapter, _) in enumerate(rows)
    ]


def tokenize(encoder: TaskEncoder, texts: Sequence[Mapping[str, str]]) -> tuple[list[Features], list[int]]:
    """The tokens of each text, by argument of the model, and the indices of the texts that were cut."""
    columns, too_long = encoder.encode_texts(texts)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], too_long


def _tokenize(
    examples: Sequence[tuple[LoadedAdapter, Example]],
) -> tuple[list[tuple[LoadedAdapter, Features]], list[int]]:
    """The rows of a batch, and the indices of the examples that were cut."""
    by_adapter: dict[str, list[int]] = {}
    for index, (adapter, _) in enumerate(examples):
        by_adapter.setdefault(adapter.key, []).append(index)
    rows: dict[int, tuple[LoadedAdapter, Features]] = {}
    cut: list[int] = []
    for indices in by_adapter.values():
        adapter = examples[indices[0]][0]
        columns = adapter.class_encoder.task.text_fields
        texts = [dict(zip(columns, examples[index][1].fields.values(), strict=True)) for index in indices]
        features, too_long = tokenize(adapter.class_encoder, texts)
        rows.update((index, (adapter, one)) for index, one in zip(indices, features, strict=True))
        cut.extend(indices[row] for row in too_long)
    return [rows[index] for index in range(len(examples))], sorted(cut)


def _own_logits(adapter: LoadedAdapter, logits: torch.Tensor, batch_size: int) -> torch.Tensor:
    """A row of logits, (1, n), without those that pad it to the most classes of a batch."""
    task = adapter.class_encoder.task
    return logits[:, : len(task.score_names)] if task.trains_head and batch_size > 1 else logits


def _warn_cut(cut: Sequence[tuple[LoadedAdapter, Example]], examples: Sequence[tuple[LoadedAdapter, Example]]) -> None:
    for maximum in sorted({adapter.class_encoder.max_length for adapter, _ in cut}):
        own = [example for adapter, example in cut if adapter.class_encoder.max_length == maximum]
        count = sum(adapter.class_encoder.max_length == maximum for adapter, _ in examples)
        warn_cut(len(own), own[0], count, maximum)
