"""Attention masks with prompts in front of the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sptune.errors import InputError


def check_attention_mask(mask: Any) -> None:
    """Refuse an attention mask whose form inside the blocks cannot be extended by prompts.

    Raises:
        InputError: the mask is not a dense mask of four dimensions.
    """
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor):
        raise InputError(
            f"A block got an attention mask of type {type(mask).__name__} (flex attention), which cannot be extended "
            "by prompts; load the model with attn_implementation='sdpa' or 'eager'."
        )
    if mask.dim() != 4:
        raise InputError(
            f"A block got an attention mask with {mask.dim()} dimensions where 4 are expected; load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )


def check_length(block: nn.Module, length: int) -> None:
    """Refuse more keys than a block's own causal mask covers: eager GPT-2 of transformers 4 cuts it from a buffer.

    Args:
        block: a block of the backbone.
        length: keys, prompts and cached text included.

    Raises:
        InputError: the buffer is too small.
    """
    attention: Any = getattr(block, "attn", None)
    buffers = dict(attention.named_buffers(recurse=False)) if attention is not None else {}
    causal_mask = buffers.get("bias")
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    if causal_mask is not None and implementation == "eager" and length > causal_mask.shape[-1]:
        raise InputError(
            f"Prompts and text have {length} positions, but eager attention of this model covers "
            f"{causal_mask.shape[-1]}; load it with attn_implementation='sdpa', or give shorter texts."
        )
