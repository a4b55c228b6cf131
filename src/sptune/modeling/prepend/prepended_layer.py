"""`PrependedLayer`: one transformer block with prompts in front of the text (method sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.modeling.calls import argument_positions
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.prepend.block_call import BlockCall
from sptune.modeling.prepend.kv_cache import PromptedCacheLayer, prompted_cache_layer, refuse_prompted_cache
from sptune.modeling.prepend.masks import check_attention_mask, check_length
from sptune.modeling.prepend.mixed_prompts import MixedPromptLayer, MixedPrompts
from sptune.modeling.prepend.prepend_attachment import PrependAttachment
from sptune.modeling.prepend.prompt_generators import INITIAL_STD, INSTANCE_AWARE
from sptune.modeling.prepend.prompt_mixing import mix_prompts, mix_visible_prompts, mixing_weights
from sptune.modeling.prepend.prompted_forward import PromptedForward
from sptune.modeling.prepend.weighted_attention import WeightedProbabilities

if TYPE_CHECKING:
    from sptune.modeling.layer import SPTLayer


class PrependedLayer:
    """Runs a block with prompts in front of the text.

    The first prompt layer inserts prompts, later prompt layers mix theirs with the propagated ones, and the last block
    of the model removes them. The call of the block is read by argument name, because positions and types of arguments
    differ between families and between versions of transformers.

    Args:
        layer: the wrapped block.
        attachment: what the prepended layers of the model share.

    Raises:
        InputError: the block's forward does not take `hidden_states` first and an `attention_mask`.
    """

    def __init__(self, layer: SPTLayer, attachment: PrependAttachment) -> None:
        self.layer = layer
        self.index = layer.index
        self.attachment = attachment
        self.backbone = attachment.backbone
        self.positions = argument_positions(layer.base_layer.forward)
        names = list(self.positions)
        if names[:1] != ["hidden_states"] or "attention_mask" not in names:
            raise InputError(
                f"{type(layer.base_layer).__name__} takes ({', '.join(names)}); prompts in front of the text need "
                "blocks that take hidden_states first and an attention_mask. Choose another layers_path, or "
                "placement='add'."
            )
        self.weighted_probabilities = None
        if self.backbone.weighted_attention is not None:
            attention = attrgetter(self.backbone.weighted_attention)(layer.base_layer)
            self.weighted_probabilities = WeightedProbabilities(attention)

    def remove(self) -> None:
        """Remove the hooks from the block."""
        if self.weighted_probabilities is not None:
            self.weighted_probabilities.remove()

    def run_bare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on (batch, length, d) without prompts in front."""
        call = BlockCall(self.positions, args, kwargs)
        refuse_prompted_cache(call.cache, self.index)
        if self.weighted_probabilities is not None:
            call["attention_mask"] = call["attention_mask"].to(torch.bool)
        return self.layer.base_layer(*call.args, **call.kwargs)

    def run(self, adapter: str, settings: AdapterSettings, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on (batch, length, d) or, above the first prompt layer, on (batch, m + length, d)."""
        if "_is_replica" in self.layer.__dict__:
            raise InputError(
                "torch.nn.DataParallel runs replicas in threads, which prompts do not support; start one process a GPU "
                "(accelerate launch ...) or show one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if self.index < settings.layers[0]:
            return self.run_bare(args, kwargs)
        call = BlockCall(self.positions, args, kwargs)
        forward, m = self.attachment.forward, settings.config.num_virtual_tokens or 0
        cache_layer = None if call.cache is None else prompted_cache_layer(call.cache, self.index, m, adapter)
        forward.check_inputs()
        inserting = cache_layer is None or not cache_layer.holds_prompts
        if self.index in settings.layers:
            gate, below = self._pass_gate(forward, adapter, settings, call["hidden_states"])
            if inserting:
                call["hidden_states"] = self._insert(forward, call["hidden_states"], adapter, settings, gate, below)
        return self._run_extended(forward, call, m, cache_layer, gated=settings.gated)

    def run_mixed(self, prompts: MixedPrompts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on (batch, length, d) or, above the first prompt layer, on (batch, slots + length, d)."""
        if self.index < prompts.first_layer:
            return self.run_bare(args, kwargs)
        call = BlockCall(self.positions, args, kwargs)
        forward, slots = self.attachment.forward, prompts.num_slots
        cache_layer = None
        if call.cache is not None:
            cache_layer = prompted_cache_layer(call.cache, self.index, slots, prompts.label)
        forward.check_inputs()
        states = call["hidden_states"]
        here = prompts.at(self.index, len(states), states.device)
        if prompts.has_new_at(self.index) and not (cache_layer is not None and cache_layer.holds_prompts):
            call["hidden_states"] = self._insert_mixed(forward, states, prompts, here)
        forward.inclusion = here.inclusion
        return self._run_extended(forward, call, slots, cache_layer, gated=True)

    def _run_extended(
        self,
        forward: PromptedForward,
        call: BlockCall,
        num_prompts: int,
        cache_layer: PromptedCacheLayer | None,
        *,
        gated: bool,
    ) -> Any:
        """Run the block on states with prompts in front; the last block removes them."""
        inserting = cache_layer is None or not cache_layer.holds_prompts
        self._extend_mask(forward, call, num_prompts, cache_layer, inserting=inserting, gated=gated)
        if inserting:
            self._extend_positions(forward, call, num_prompts)
        output = self.layer.base_layer(*call.args, **call.kwargs)
        last = self.index == self.backbone.num_layers - 1
        return self._remove_prompts(forward, output, num_prompts if inserting else 0) if last else output

    def _pass_gate(
        self, forward: PromptedForward, adapter: str, settings: AdapterSettings, states: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """This layer's gate and the inclusion probability below it, each (1,) or (batch,); updates the forward's."""
        gate = self.layer.gate(adapter, settings, states)
        if gate is None:
            return None, None
        below = torch.zeros_like(gate) if forward.inclusion is None else forward.inclusion.to(gate.device)
        forward.inclusion = mixing_weights(gate, below, settings.config.mixing_rate or 1.0)[2]
        return gate, below

    def _insert(
        self,
        forward: PromptedForward,
        hidden_states: torch.Tensor,
        adapter: str,
        settings: AdapterSettings,
        gate: torch.Tensor | None,
        below: torch.Tensor | None,
    ) -> torch.Tensor:
        """This layer's prompts and the text, (batch, m + length, d); prompts from below are mixed in and replaced."""
        m = settings.config.num_virtual_tokens
        if self.index == settings.layers[0]:
            propagated, text = None, forward.align(hidden_states)
        else:
            propagated, text = hidden_states[:, :m], hidden_states[:, m:]
        generator = self.layer.spt_generator[adapter]
        new = self._generate(text, generator, settings.config, next(generator.parameters()).dtype)
        return torch.cat([self._mix(propagated, new, settings, gate, below), text], dim=1)

    def _insert_mixed(
        self, forward: PromptedForward, states: torch.Tensor, prompts: MixedPrompts, here: MixedPromptLayer
    ) -> torch.Tensor:
        """The slots of all rows with their adapters' prompts, and the text, (batch, slots + length, d)."""
        slots = prompts.num_slots
        if self.index == prompts.first_layer:
            text = forward.align(states)
            propagated = text.new_full((len(text), slots, text.shape[-1]), INITIAL_STD)
        else:
            text = states[:, slots:]
            # Below its first prompt layer, a row's slots hold what no token attends to.
            propagated = torch.where(here.begins, INITIAL_STD, states[:, :slots])
        new = torch.full_like(propagated, INITIAL_STD)
        for group in here.groups:
            own = self._generate(text, group.generator, group.config, group.dtype, group.rows)
            own = pad(own, (0, 0, slots - own.shape[1], 0), value=INITIAL_STD)
            new = own if group.rows is None else new.index_copy(0, group.rows, own)
        mixed = here.keep.to(new.dtype) * propagated + here.renew.to(new.dtype) * new
        return torch.cat([mixed, text], dim=1)

    def _generate(
        self,
        text: torch.Tensor,
        generator: Callable[..., torch.Tensor],
        config: SPTConfig,
        dtype: torch.dtype,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """New prompts (batch, m, d) from the text's states (batch, length, d); with `rows`, of these rows only."""
        own = text if rows is None else text.index_select(0, rows)
        states = self.layer._cast_input_dtype(own, dtype)
        source = None
        if config.generator in INSTANCE_AWARE:
            source = self.attachment.source_mask(text)
            source = source if rows is None else source.index_select(0, rows)
            # A row without source tokens gets the prompts of a constant text: the gradient of norms overflows at
            # prompts of zeros, and would spoil that of the other rows.
            empty = ~source.any(-1, keepdim=True)
            states = torch.where(empty[..., None], INITIAL_STD, states)
            source = source | empty
        return generator(states, source, causal=self.backbone.causal).to(text.dtype)

    def _mix(
        self,
        propagated: torch.Tensor | None,
        new: torch.Tensor,
        settings: AdapterSettings,
        gate: torch.Tensor | None,
        below: torch.Tensor | None,
    ) -> torch.Tensor:
        """The prompts of this layer, (batch, m, d): the new ones mixed with the propagated ones, if there are any."""
        tau = settings.config.mixing_rate or 1.0
        if gate is None or below is None:
            return new if propagated is None or tau == 1 else mix_visible_prompts(propagated, new, None, tau)
        if propagated is None:
            # No token attends to prompts that are not included; prompts that are always visible must not be zero.
            propagated = torch.full_like(new, 0.0 if settings.gated else INITIAL_STD)
        if settings.gated:
            return mix_prompts(propagated, new, gate, below, tau)
        return mix_visible_prompts(propagated, new, gate, tau)

    def _extend_mask(
        self,
        forward: PromptedForward,
        call: BlockCall,
        m: int,
        cache_layer: PromptedCacheLayer | None,
        *,
        inserting: bool,
        gated: bool,
    ) -> None:
        hidden_states, mask = call["hidden_states"], call.get("attention_mask")
        check_attention_mask(mask)
        past_length = 0 if cache_layer is None else cache_layer.get_seq_length()
        check_length(self.layer.base_layer, hidden_states.shape[1] + past_length + (0 if inserting else m))
        call["attention_mask"] = forward.attention_mask(
            mask, hidden_states, m, past_length=past_length, inserting=inserting, gated=gated
        )

    def _extend_positions(self, forward: PromptedForward, call: BlockCall, m: int) -> None:
        hidden_states = call["hidden_states"]
        ids, tables = call.get("position_ids"), call.get("position_embeddings")
        if tables is not None:
            call["position_embeddings"] = forward.rotary_tables(tables, ids, hidden_states, m)
        if ids is not None:
            call["position_ids"] = forward.position_ids(ids, hidden_states.shape[1] - m, m)
        if call.get("relative_pos") is not None:
            call["relative_pos"] = forward.relative_positions(hidden_states)

    def _remove_prompts(self, forward: PromptedForward, output: Any, num_prompts: int) -> Any:
        """The block's output without the prompts; its first value, or itself, is (batch, m + length, d)."""
        hidden_states = output[0] if isinstance(output, tuple) else output
        text = forward.restore(hidden_states[:, num_prompts:])
        return (text, *output[1:]) if isinstance(output, tuple) else text
