"""Positions of tokens with prompts in front of the text: position ids, rotary tables, padding. Pure functions."""

from __future__ import annotations

import torch


def extend_position_ids(
    position_ids: torch.Tensor, num_prompts: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Put the prompts' positions in front of the text's: the m positions right before each row's first real token.

    The text keeps its own positions, and padding in front of it does not push the prompts away.

    Args:
        position_ids: the text's, (batch or 1, length).
        num_prompts: m.
        attention_mask: (batch, length or more), ones at real tokens; None if all tokens are real.

    Returns:
        (batch or 1, m + length); negative where a row's text begins at a position below m.
    """
    first = position_ids[:, :1]
    if attention_mask is not None:
        position_ids = position_ids.expand(attention_mask.shape[0], -1)
        real = attention_mask[:, -position_ids.shape[1] :].to(position_ids.device, torch.bool)
        first = position_ids.gather(1, real.to(torch.long).argmax(-1, keepdim=True))
        # Position ids of padding are arbitrary. Where a row begins with a piece of nothing else, the text begins at 0.
        first = first.masked_fill(~real.any(-1, keepdim=True), 0)
    front = first + torch.arange(-num_prompts, 0, device=position_ids.device, dtype=position_ids.dtype)
    return torch.cat([front, position_ids], dim=1)


def extend_rotary_tables(
    tables: tuple[torch.Tensor, torch.Tensor], front: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the prompts' rotary tables in front of the text's.

    Args:
        tables: cos and sin of the text, each (batch or 1, length, size).
        front: cos and sin of the prompts, each (batch or 1, m, size).

    Returns:
        cos and sin, each (batch or 1, m + length, size).
    """
    rows = max(front[0].shape[0], tables[0].shape[0])
    cos, sin = (
        torch.cat([new.expand(rows, -1, -1), table.expand(rows, -1, -1)], dim=1)
        for new, table in zip(front, tables, strict=True)
    )
    return cos, sin


def leading_padding(attention_mask: torch.Tensor) -> torch.Tensor:
    """The number of padding tokens before each row's first real token, (batch,), from the mask (batch, length)."""
    return attention_mask.to(torch.long).argmax(-1)


def roll_rows(tensor: torch.Tensor, shifts: torch.Tensor | None) -> torch.Tensor:
    """Roll row b of (batch, length, ...) to the left by shifts[b]; None leaves all rows as they are."""
    if shifts is None:
        return tensor
    length = tensor.shape[1]
    index = (torch.arange(length, device=tensor.device) + shifts.to(tensor.device)[:, None]) % length
    return tensor[torch.arange(tensor.shape[0], device=tensor.device)[:, None], index]


def positions_restart(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> bool:
    """Whether positions (batch, length) start again within a row's real tokens, as in packed sequences.

    Without an attention mask (batch, length or more), a position that does not grow counts, too.
    """
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return False
    if attention_mask is None:
        return bool((position_ids.diff(dim=-1) <= 0).any())
    real = attention_mask[:, -position_ids.shape[1] :].to(position_ids.device, torch.bool)
    return bool(((position_ids.diff(dim=-1) < 0) & real[:, 1:] & real[:, :-1]).any())
