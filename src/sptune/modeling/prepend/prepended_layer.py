"""`PrependedLayer`: one transformer block with prompts in front of the text (method sections 2 and 3)."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from sptune.errors import InputError
from sptune.modeling.calls import argument_positions
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.prepend.block_call import BlockCall
from sptune.modeling.prepend.flow import PromptFlow
from sptune.modeling.prepend.kv_cache import PromptedCacheLayer, prompted_cache_layer, refuse_prompted_cache
from sptune.modeling.prepend.masks import check_attention_mask, check_length
from sptune.modeling.prepend.prompt_generators import INITIAL_STD, INSTANCE_AWARE
from sptune.modeling.prepend.prompt_mixing import mix_prompts, mixing_weights
from sptune.modeling.prepend.weighted_attention import WeightedProbabilities

if TYPE_CHECKING:
    from sptune.modeling.layer import SPTLayer


class PrependedLayer:
    """A block with prompts in front of the text: it puts them there or renews them, and takes them off after the last.

    It binds the call of the block by argument name, because positions and types differ between families and between
    versions of transformers, and extends mask and positions.

    Args:
        layer: the wrapped block.
        flow: what the blocks of the model share.

    Raises:
        InputError: the block's forward does not take `hidden_states` first and an `attention_mask`.
    """

    def __init__(self, layer: SPTLayer, flow: PromptFlow) -> None:
        self.layer = layer
        self.index = layer.index
        self.flow = flow
        self.positions = argument_positions(layer.base_layer.forward)
        names = list(self.positions)
        if names[:1] != ["hidden_states"] or "attention_mask" not in names:
            raise InputError(
                f"{type(layer.base_layer).__name__} takes ({', '.join(names)}); prompts in front of the text need "
                "blocks that take hidden_states first and an attention_mask. Choose another layers_path, or "
                "placement='add'."
            )
        self.weighted_probabilities = None
        if flow.backbone.weighted_attention is not None:
            attention = attrgetter(flow.backbone.weighted_attention)(layer.base_layer)
            self.weighted_probabilities = WeightedProbabilities(attention)

    def remove(self) -> None:
        """Take everything off that was hooked on."""
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
        flow, m = self.flow, settings.config.num_virtual_tokens or 0
        cache_layer = self._cache_layer(call, m, adapter)
        flow.check_inputs()
        inserting = cache_layer is None or not cache_layer.holds_prompts
        if self.index in settings.layers:
            gate, below = self._pass_gate(adapter, settings, call["hidden_states"].shape[0])
            if inserting:
                call["hidden_states"] = self._renew(call["hidden_states"], adapter, settings, gate, below)
        hidden_states = call["hidden_states"]
        mask = call.get("attention_mask")
        check_attention_mask(mask)
        past_length = 0 if cache_layer is None else cache_layer.get_seq_length()
        check_length(self.layer.base_layer, hidden_states.shape[1] + past_length + (0 if inserting else m))
        call["attention_mask"] = flow.attention_mask(
            mask,
            hidden_states,
            num_prompts=m,
            past_length=past_length,
            inserting=inserting,
            gated=settings.gated,
        )
        if inserting:
            self._extend_positions(call, hidden_states, m)
        output = self.layer.base_layer(*call.args, **call.kwargs)
        last = self.index == flow.backbone.num_layers - 1
        return self._take_off(output, m if inserting else 0) if last else output

    def _cache_layer(self, call: BlockCall, m: int, adapter: str) -> PromptedCacheLayer | None:
        cache = call.cache
        return None if cache is None else prompted_cache_layer(cache, self.index, m, adapter)

    def _pass_gate(
        self, adapter: str, settings: AdapterSettings, batch: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """This layer's gate values and the presence below it; the presence in the flow moves up by one layer."""
        gate = self.layer.gate(adapter, settings, batch)
        if gate is None:
            return None, None
        below = self.flow.state.presence
        below = torch.zeros_like(gate) if below is None else below.to(gate.device)
        self.flow.state.presence = mixing_weights(gate, below, settings.config.mixing_rate or 1.0)[2]
        return gate, below

    def _renew(
        self,
        hidden_states: torch.Tensor,
        adapter: str,
        settings: AdapterSettings,
        gate: torch.Tensor | None,
        below: torch.Tensor | None,
    ) -> torch.Tensor:
        """Put this layer's prompts in front of the text, mixed with those that came from below."""
        config, m = settings.config, settings.config.num_virtual_tokens
        tau = config.mixing_rate or 1.0
        first = self.index == settings.layers[0]
        if first:
            propagated, text = None, self.flow.align(hidden_states)
        else:
            propagated, text = hidden_states[:, :m], hidden_states[:, m:]
        generator = self.layer.spt_generator[adapter]
        dtype = next(generator.parameters()).dtype
        source = self.flow.source_mask(text) if config.generator in INSTANCE_AWARE else None
        reading = self.layer._cast_input_dtype(text, dtype)
        if source is not None:
            # A row with nothing to read gets the prompts of a constant: a prompt of zeros would make the gradient of
            # the norms above overflow, and spoil that of the other rows.
            blind = ~source.any(-1, keepdim=True)
            reading = torch.where(blind[..., None], INITIAL_STD, reading)
            source = source | blind
        new = generator(reading, source, causal=self.flow.backbone.causal).to(text.dtype)
        if gate is not None and below is not None:
            if propagated is None:
                # Nothing looks at absent slots; those that are always visible must not be zero.
                propagated = torch.full_like(new, 0.0 if settings.gated else INITIAL_STD)
            if settings.gated:
                new = mix_prompts(propagated, new, gate, below, tau)
            else:
                share = (tau * gate)[:, None, None].to(new.dtype)
                new = (1 - share) * propagated + share * new
        elif propagated is not None and tau < 1:
            new = (1 - tau) * propagated + tau * new
        return torch.cat([new, text], dim=1)

    def _extend_positions(self, call: BlockCall, hidden_states: torch.Tensor, m: int) -> None:
        ids, tables = call.get("position_ids"), call.get("position_embeddings")
        if tables is not None:
            call["position_embeddings"] = self.flow.rotary_tables(tables, ids, hidden_states, m)
        if ids is not None:
            call["position_ids"] = self.flow.position_ids(ids, hidden_states.shape[1] - m, m)
        if call.get("relative_pos") is not None:
            call["relative_pos"] = self.flow.relative_positions(hidden_states)

    def _take_off(self, output: Any, num_prompts: int) -> Any:
        hidden_states = output[0] if isinstance(output, tuple) else output
        text = self.flow.restore(hidden_states[:, num_prompts:])
        return (text, *output[1:]) if isinstance(output, tuple) else text
