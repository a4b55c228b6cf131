"""`PromptedForward`: the state of one forward of a base model with prompts in front of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sptune.errors import InputError
from sptune.modeling.forward_context import ThreadState
from sptune.modeling.prepend.families import PrependBackbone
from sptune.modeling.prepend.masks import (
    additive_mask,
    extend_mask,
    implied_mask,
    roll_mask,
    scale_attention_to_prompts,
)
from sptune.modeling.prepend.positions import (
    extend_position_ids,
    extend_rotary_tables,
    leading_padding,
    positions_restart,
    roll_rows,
)


class PromptedForward:
    """What the layers of one forward share: masks and positions, each extended once, and the inclusion probability.

    Args:
        backbone: the model's blocks.
        inputs: arguments of the base model's forward, by name.

    Attributes:
        inclusion: the probability that a prompt has been inserted so far, (1,) or (batch,), or (batch, m) for each
            prompt token; None below the first gate.
        source_mask: the tokens that generators may look at, (batch, length) bool; None until a generator asks.
    """

    def __init__(self, backbone: PrependBackbone, inputs: dict[str, Any]) -> None:
        self.backbone = backbone
        self.inputs = inputs
        self.inclusion: torch.Tensor | None = None
        self.source_mask: torch.Tensor | None = None
        self._checked = False
        self._made: dict[Any, tuple[Any, Any]] = {}

    @property
    def has_prompts(self) -> bool:
        """Whether something has been extended by prompts."""
        return bool(self._made)

    @property
    def text_length(self) -> int | None:
        """The number of text tokens, padding included; None if the inputs hold neither token ids nor embeddings."""
        tokens = self.inputs.get("input_ids")
        tokens = self.inputs.get("inputs_embeds") if tokens is None else tokens
        return None if tokens is None else tokens.shape[1]

    def check_inputs(self) -> None:
        """Refuse inputs that cannot be right with prompts, once a forward.

        Raises:
            InputError: packed sequences, or an attention mask that is not (batch, length).
        """
        if self._checked:
            return
        self._checked = True
        attention_mask = self.inputs.get("attention_mask")
        if attention_mask is not None and getattr(attention_mask, "ndim", None) != 2:
            form = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
            raise InputError(
                f"attention_mask has the form {form}; prompts need one of shape (batch, length) with ones at real "
                "tokens."
            )
        packed = any(self.inputs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens", "seq_idx"))
        if packed or positions_restart(self.inputs.get("position_ids"), attention_mask):
            raise InputError(
                "The batch holds packed sequences (positions restart within a row), and a prompt stands before a row, "
                "not before each sequence in it; use one sequence a row with padding (packing=False, "
                "padding_free=False)."
            )

    def attention_mask(
        self,
        mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        num_prompts: int,
        *,
        past_length: int,
        inserting: bool,
        gated: bool,
    ) -> torch.Tensor | None:
        """A block's mask with prompts.

        Args:
            mask: as the model passed it to the block: None, boolean (true: attend), additive, or multiplicative.
            hidden_states: (batch, length, d), prompts included where they are inserted; for dtype and length.
            num_prompts: m.
            past_length: text tokens in the cache.
            inserting: whether the prompts are among the queries; not so once they are in the cache.
            gated: whether attention to prompt tokens is scaled by their inclusion probability.

        Returns:
            None, or (batch or 1, heads or 1, queries or 1, keys), with m more keys and, if inserted, queries.
        """
        length = hidden_states.shape[1] - (num_prompts if inserting else 0)

        def extend() -> torch.Tensor | None:
            text = self._text_mask(mask, length, past_length, hidden_states.device, needed=gated)
            if text is None:
                return None
            extended = extend_mask(text, num_prompts, causal=self.backbone.causal, with_queries=inserting)
            if not gated:
                return extended
            dtype = hidden_states.dtype
            return extended.to(dtype) if self._multiplicative else additive_mask(extended, dtype)

        extended = self._once(("mask", id(mask), inserting, gated), mask, extend)
        if not gated:
            return extended
        assert self.inclusion is not None
        inclusion = self.inclusion

        def scale() -> torch.Tensor:
            return scale_attention_to_prompts(extended, inclusion, num_prompts, multiplicative=self._multiplicative)

        return self._once(("scaled", id(inclusion), id(extended)), (inclusion, extended), scale)

    def position_ids(self, position_ids: torch.Tensor | None, length: int, num_prompts: int) -> torch.Tensor:
        """Position ids (batch or 1, m + length) of prompts and text, whose own are 0, 1, ... if they are None."""

        def extend() -> torch.Tensor:
            ids = position_ids
            if ids is None:
                ids = torch.arange(length, device=next(self.backbone.layers.parameters()).device)[None]
            return extend_position_ids(ids, num_prompts, self.inputs.get("attention_mask"))

        return self._once(("positions", id(position_ids)), position_ids, extend)

    def rotary_tables(
        self,
        tables: tuple[torch.Tensor, torch.Tensor],
        position_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        num_prompts: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary tables (cos, sin) of prompts and text, from those of the text (batch or 1, length, size)."""

        def extend() -> tuple[torch.Tensor, torch.Tensor]:
            assert self.backbone.rotary is not None
            ids = self.position_ids(position_ids, tables[0].shape[1], num_prompts)[:, :num_prompts]
            return extend_rotary_tables(tables, self.backbone.rotary(hidden_states, ids))

        return self._once(("rotary", id(tables)), tables, extend)

    def relative_positions(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """DeBERTa's relative positions for hidden states with prompts in front, or None in other families."""
        make = self.backbone.relative_positions
        return None if make is None else self._once("relative", None, lambda: make(hidden_states))

    def align(self, tensor: torch.Tensor) -> torch.Tensor:
        """Roll the rows of (batch, length, ...) so that padding stands behind the text, where that is needed.

        DeBERTa has one table of relative positions for all rows of a batch: with padding between the prompts and the
        text, the prompts would be as far away as there is padding.
        """
        return roll_rows(tensor, self._leading_padding())

    def restore(self, tensor: torch.Tensor) -> torch.Tensor:
        """Undo `align`."""
        front = self._leading_padding()
        return roll_rows(tensor, None if front is None else -front)

    @property
    def _multiplicative(self) -> bool:
        return self.backbone.weighted_attention is not None

    def _text_mask(
        self, mask: torch.Tensor | None, length: int, past_length: int, device: torch.device, *, needed: bool
    ) -> torch.Tensor | None:
        """The text's mask in the form that can be extended; None if attention needs none."""
        causal = self.backbone.causal
        if mask is not None:
            return roll_mask(mask.to(torch.bool), self._leading_padding()) if self._multiplicative else mask
        # Causal attention without a mask aligns the first query with the first key, which is wrong where several
        # queries meet a cache.
        if needed or (causal and past_length > 0 and length > 1):
            return implied_mask(length, past_length, causal=causal, device=device)
        return None

    def _leading_padding(self) -> torch.Tensor | None:
        """The number of padding tokens before each row's text, (batch,), or None where it does not matter."""
        mask = self.inputs.get("attention_mask")
        if self.backbone.relative_positions is None or mask is None:
            return None

        def count() -> torch.Tensor | None:
            front = leading_padding(mask)
            return front if bool(front.any()) else None

        return self._once("padding", mask, count)

    def _once(self, key: Any, source: Any, make: Callable[[], Any]) -> Any:
        """The value of `make`, made once for the key; the key may hold the id of `source`."""
        if key not in self._made:
            # The source is kept beside the result, so that its id is not given to another object meanwhile.
            self._made[key] = (source, make())
        return self._made[key][1]


class PrependContext(ThreadState):
    """The calls under way of one model in this thread, from the outermost to the base model's.

    Attributes:
        call: arguments of a call of the model that has not come to its forward yet, by name.
        model_inputs: arguments of the model's forward under way, `source_mask` included; None outside one.
        forward: the base model's forward under way; None outside one.
        instruction: the text given to the `generate` under way, (batch, length) or its embeddings.
    """

    def __init__(self) -> None:
        self.call: dict[str, Any] | None = None
        self.model_inputs: dict[str, Any] | None = None
        self.forward: PromptedForward | None = None
        self.instruction: torch.Tensor | None = None
