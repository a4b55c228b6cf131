"""Functions that let a model write texts after prompts and that measure its loss on completions.

They know no runs or adapters: `sptune.runs.text_evaluation` uses them at the end of a run,
`sptune.saved_adapters.text_writer` with one saved adapter, and `sptune.saved_adapters.generated_rows` with several.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from sptune.modeling.labeled_positions import at_labels
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_metrics import completion_losses
from sptune.tasks.generation_task import GenerationExample

BATCH_SIZE = 16


def generate_texts(
    model: Any,
    encoder: GenerationEncoder,
    examples: Sequence[GenerationExample],
    max_new_tokens: int,
    step: Callable[[], None] = lambda: None,
    adapter_names: Sequence[str] | None = None,
) -> list[str]:
    """Let a model write after each prompt, always the most likely next token.

    Args:
        model: a causal language model with `generate`, with or without an adapter.
        encoder: of the task.
        examples: the prompts.
        max_new_tokens: the maximum length of a text in tokens, less where the model takes no more positions.
        step: called after each batch.
        adapter_names: PEFT's, the adapter of each example; None for the active one.

    Returns:
        The texts in the order of the examples, without prompts and special tokens.
    """
    prompts = encoder.encode_prompts(examples)
    texts = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for places, room in _batches(prompts, max_new_tokens, getattr(model.config, "max_position_embeddings", None)):
        batch = encoder.collator([{"input_ids": prompts[place]} for place in places], left=True)
        # Settings for generation that come with a model, such as a repetition penalty, must not change the answers.
        config = GenerationConfig(
            max_new_tokens=room,
            do_sample=False,
            num_beams=1,
            eos_token_id=encoder.stop_token_ids,
            pad_token_id=encoder.collator.pad_token_id,
        )
        options = {} if adapter_names is None else {"adapter_names": [adapter_names[place] for place in places]}
        on_device = {name: value.to(model.device) for name, value in batch.items()}
        with torch.no_grad(), _generation_config(model, config):
            written = model.generate(**on_device, generation_config=config, **options)
        for place, tokens in zip(places, written[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            texts[place] = encoder.decode(_before_stop(tokens, encoder.stop_token_ids))
        step()
    model.train(was_training)
    return texts


@contextlib.contextmanager
def _generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Replace the settings for generation that come with a model; `generate` adds them to those that it is given.

    Args:
        model: a causal language model, with or without an adapter.
        config: the settings until the block ends.
    """
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = backbone.generation_config
    backbone.generation_config = config
    try:
        yield
    finally:
        backbone.generation_config = own


def _batches(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, limit: int | None
) -> Iterator[tuple[list[int], int]]:
    """Places of prompts of similar length, and how many tokens each may get, which no other prompt of a batch lowers.

    Args:
        prompts: the tokens of each.
        max_new_tokens: the maximum.
        limit: the number of positions of the model, None for any.
    """
    rooms = [max_new_tokens if limit is None else max(1, min(max_new_tokens, limit - len(one))) for one in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for room, group in itertools.groupby(order, key=rooms.__getitem__):
        places = list(group)
        for start in range(0, len(places), BATCH_SIZE):
            yield places[start : start + BATCH_SIZE], room


def batches_to_generate(examples: Sequence[GenerationExample]) -> int:
    """The number of batches in which `generate_texts` writes."""
    return -(-len(examples) // BATCH_SIZE)


def measure_losses(
    model: Any, encoder: GenerationEncoder, examples: Sequence[GenerationExample], step: Callable[[], None]
) -> np.ndarray:
    """The summed loss of each completion's tokens, and their number, (n, 2); see `completion_losses`.

    Args:
        model: a causal language model.
        encoder: of the task.
        examples: with completions.
        step: called after each batch.
    """
    encoded = encoder.encode(examples)
    # By length, so that there is little padding, and completions are at the same positions.
    order = np.argsort(encoded["length"], kind="stable")
    losses = np.zeros((len(encoded), 2), dtype=np.float32)
    for start in range(0, len(encoded), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        batch = encoder.collator([encoded[int(place)] for place in places])
        batch = at_labels(model, {name: value.to(model.device) for name, value in batch.items()})
        with torch.no_grad():
            losses[places] = completion_losses(model(**batch).logits, batch["labels"]).cpu().numpy()
        step()
    return losses


def _before_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens up to the first that ends the text; padding follows it."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]
