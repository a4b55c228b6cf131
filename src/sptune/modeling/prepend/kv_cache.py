"""`PromptedCacheLayer`: a cache layer with the keys and values of prompts, which reports the length of the text."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from sptune.errors import InputError


class PromptedCacheLayer(DynamicLayer):
    """Keys and values of m prompts and of the text; every length it reports or takes is the text's.

    Transformers computes positions and masks from the lengths that cache layers report, and crops by them, so the
    prompts must not count.

    Args:
        num_prompts: m.
        adapter_name: the adapter whose prompts are held.
        sliding_window: the layer's attention window, which the text must not outgrow (`update` raises), or None.
    """

    def __init__(self, num_prompts: int, adapter_name: str, sliding_window: int | None) -> None:
        super().__init__()
        self.num_prompts = num_prompts
        self.adapter_name = adapter_name
        self.sliding_window = sliding_window

    @property
    def holds_prompts(self) -> bool:
        """Whether the first forward, which brings the prompts, has been seen."""
        return self.is_initialized and self.keys is not None and self.keys.numel() > 0

    def get_seq_length(self, *args: Any) -> int:
        """Number of text tokens held."""
        keys = self.keys
        return keys.shape[-2] - self.num_prompts if keys is not None and self.holds_prompts else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (batch, heads, length, head size) and return all, prompts first.

        Raises:
            InputError: the text outgrows the layer's sliding window.
        """
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if self.sliding_window is not None and self.get_seq_length() > self.sliding_window:
            raise InputError(
                f"The text has outgrown the model's sliding attention window ({self.get_seq_length()} > "
                f"{self.sliding_window} tokens), where a cache would drop the prompts; generate with use_cache=False, "
                "shorten the text, or load the model with sliding_window=None."
            )
        return keys, values

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` text tokens, or with a negative number drop that many from the end."""
        kept = self.get_seq_length() + max_length if max_length <= 0 else min(max_length, self.get_seq_length())
        if self.keys is not None and self.values is not None:
            self.keys = self.keys[..., : self.num_prompts + kept, :]
            self.values = self.values[..., : self.num_prompts + kept, :]


def prompted_cache_layer(cache: Cache, index: int, num_prompts: int, adapter_name: str) -> PromptedCacheLayer:
    """The cache's layer `index`, replaced by one that can hold prompts if the cache is still empty there.

    Raises:
        InputError: the cache is of a kind that cannot hold prompts, or was filled without them or by another adapter.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        raise InputError(f"The cache is a {type(cache).__name__}; prompts need a transformers.DynamicCache.")
    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())  # type: ignore[misc]
    layer: Any = cache.layers[index]
    if isinstance(layer, PromptedCacheLayer):
        if layer.holds_prompts and layer.adapter_name != adapter_name:
            raise InputError(
                f"The cache was filled by adapter {layer.adapter_name!r} and is used with {adapter_name!r}; "
                "start with an empty cache after switching adapters."
            )
        if layer.holds_prompts:
            return layer
    elif type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise InputError(
            f"The cache has layers of type {type(layer).__name__}, which cannot hold prompts (static and "
            "quantized caches); use the default, cache_implementation='dynamic'."
        )
    elif layer.get_seq_length() > 0:
        raise InputError(
            "The cache was filled without prompts (adapter disabled, or another model); start with an empty cache."
        )
    prompted = PromptedCacheLayer(num_prompts, adapter_name, getattr(layer, "sliding_window", None))
    cache.layers[index] = prompted
    return prompted


def refuse_prompted_cache(cache: Any, index: int) -> None:
    """Refuse prompts in the cache of a block that runs without them.

    Raises:
        InputError: layer `index` of the cache holds prompts.
    """
    layers = getattr(cache, "layers", None)
    layer = layers[index] if isinstance(layers, list) and index < len(layers) else None
    if isinstance(layer, PromptedCacheLayer) and layer.holds_prompts:
        raise InputError(
            f"The cache was filled with the prompts of adapter {layer.adapter_name!r}, which is not active (or "
            "disabled); start with an empty cache."
        )
