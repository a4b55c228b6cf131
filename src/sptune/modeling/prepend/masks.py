"""Attention masks with prompts in front of the text: pure functions, and checks of what blocks are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from sptune.errors import InputError
from sptune.modeling.prepend.positions import roll_rows
from sptune.modeling.prepend.prompt_mixing import inclusion_bias


def implied_mask(length: int, past_length: int, *, causal: bool, device: torch.device) -> torch.Tensor:
    """The boolean mask (true: attend) that stands for no mask at all.

    Args:
        length: text tokens among the queries.
        past_length: text tokens in the cache.
        causal: whether text attends only backwards.
        device: where to make it.

    Returns:
        (1, 1, length, past_length + length), or (1, 1, 1, length) if every token sees every other.
    """
    if not causal:
        return torch.ones(1, 1, 1, length, dtype=torch.bool, device=device)
    keys = torch.arange(past_length + length, device=device)
    queries = torch.arange(past_length, past_length + length, device=device)
    return (keys[None] <= queries[:, None])[None, None]


def extend_mask(mask: torch.Tensor, num_prompts: int, *, causal: bool, with_queries: bool) -> torch.Tensor:
    """Add the prompts to a mask of the text: their keys, and with `with_queries` their queries too.

    Every text token sees all prompts. In a causal model a prompt sees the prompts up to itself and no text; in others
    it sees all prompts, and the text that some text token sees.

    Args:
        mask: (batch or 1, heads or 1, queries or 1, keys), boolean (true: attend) or additive.
        num_prompts: m.
        causal: whether text attends only backwards.
        with_queries: whether the prompts are among the queries; not so once they are in the cache.

    Returns:
        The mask with m more keys and, with `with_queries`, m more queries in front. One row for all queries stays one.
    """
    visible, hidden = (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
    m, rows = num_prompts, mask.shape[-2]
    extended = torch.cat([_full(mask, rows, m, visible), mask], dim=-1)
    if not with_queries or (rows == 1 and not causal):
        return extended
    among = _full(mask, m, m, visible)
    if causal:
        later = torch.ones(m, m, dtype=torch.bool, device=mask.device).triu(1)
        among = among.masked_fill(later, hidden)
        text = _full(mask, m, mask.shape[-1], hidden)
    else:
        seen = mask.amax(dim=-2, keepdim=True) if mask.is_floating_point() else mask.any(-2, keepdim=True)
        text = seen.expand(*mask.shape[:-2], m, mask.shape[-1])
    return torch.cat([torch.cat([among, text], dim=-1), extended], dim=-2)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of any shape as one added to the logits: 0 where a boolean mask is true, the lowest number elsewhere."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def scale_attention_to_prompts(
    mask: torch.Tensor, inclusion: torch.Tensor, num_prompts: int, *, multiplicative: bool
) -> torch.Tensor:
    """Scale the attention to prompt tokens by their inclusion probability v: add log v to their logits (section 3).

    Args:
        mask: (batch or 1, heads or 1, queries or 1, keys), floating, the prompts' keys first.
        inclusion: v, (1,) or (batch,), or (batch, m) for each prompt token.
        num_prompts: m.
        multiplicative: whether the mask multiplies the attention's probabilities and is not added to its logits.

    Returns:
        A mask of the same dtype, (batch or 1, heads or 1, queries or 1, keys).
    """
    weights = inclusion.to(mask.device).view(len(inclusion), 1, 1, -1).expand(-1, 1, 1, num_prompts)
    text = mask.shape[-1] - num_prompts
    if multiplicative:
        return mask * pad(weights, (0, text), value=1.0).to(mask.dtype)
    bias = inclusion_bias(weights)
    if bias.dtype.itemsize > mask.dtype.itemsize:
        # The lowest number of a wider dtype would become -inf in the mask's.
        bias = bias.clamp_min(torch.finfo(mask.dtype).min)
    return mask + pad(bias, (0, text)).to(mask.dtype)


def roll_mask(mask: torch.Tensor, shifts: torch.Tensor | None) -> torch.Tensor:
    """Roll the queries and keys of row b of (batch, 1, length, length) to the left by shifts[b]."""
    if shifts is None:
        return mask
    return roll_rows(roll_rows(mask.squeeze(1), shifts).mT, shifts).mT.unsqueeze(1)


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


def _full(mask: torch.Tensor, rows: int, columns: int, value: Any) -> torch.Tensor:
    """(..., rows, columns) of one value, otherwise like the mask (..., queries, keys)."""
    return mask.new_full((*mask.shape[:-2], rows, columns), value)
