"""`PromptedBlock`: one transformer block with prompts, added to its tokens or in front of them."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import Cache

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.modeling.attachment import Attachment
from sptune.modeling.backbones import WeightedProbabilities, check_attention_mask, check_length, hooked_device
from sptune.modeling.calls import CACHE_NAMES, argument_positions
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.gates import at_least_float32, mix_prompts, mixing_weights
from sptune.modeling.generators import INITIAL_STD, INSTANCE_AWARE, build_generator
from sptune.modeling.prepend.flow import PromptFlow
from sptune.modeling.prepend.kv_cache import PromptedCacheLayer, prompted_cache_layer, refuse_prompted_cache


class PromptedBlock(nn.Module, BaseTunerLayer):
    """A frozen block and, for each adapter that has this layer, a generator and on a supernet a gate.

    An adapter with `placement="add"` adds a_i G_i(h) to each token's state h before the block runs (method section 8).
    One with `placement="prepend"` has prompts in front of the text; see `PrependedBlock`.

    Args:
        base_layer: the block of the backbone, left as it is.
        index: its layer index.
        attachment: what the blocks of the model share.
    """

    adapter_layer_names = ("spt_generator", "spt_gate")
    other_param_names = ("spt_settings",)
    # Whether text is cast to the generator's dtype; `peft.helpers.disable_input_dtype_casting` turns it off.
    cast_input_dtype_enabled = True

    def __init__(self, base_layer: nn.Module, index: int, attachment: Attachment) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.index = index
        self.attachment = attachment
        self.spt_generator = nn.ModuleDict()
        self.spt_gate = nn.ParameterDict()
        self.states_name = next(iter(argument_positions(base_layer.forward)))
        self.prepended: PrependedBlock | None = None

    @property
    def spt_settings(self) -> dict[str, AdapterSettings]:
        """The settings of all adapters of the model, by name; one dictionary for all blocks."""
        return self.attachment.settings

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of their blocks (Qwen2's attention_type). Private ones are the block's alone: with
        # the block's hook for this module's own, accelerate would put the block's forward in place of the one here.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(super().__getattr__("base_layer"), name)

    def update_layer(self, adapter_name: str, config: SPTConfig) -> None:
        """Give an adapter a generator here and, if it searches, a gate with alpha = 0."""
        generator = build_generator(config, self.attachment.backbone.hidden_size)
        gate = nn.Parameter(torch.zeros(1)) if config.searching else None
        reference = next(self.base_layer.parameters()).device
        device = hooked_device(self.base_layer) or (reference if reference.type != "meta" else None)
        if device is not None and next(generator.parameters()).device.type != "meta":
            generator = generator.to(device)
            gate = nn.Parameter(gate.to(device)) if gate is not None else None
        self.spt_generator[adapter_name] = generator
        if gate is not None:
            self.spt_gate[adapter_name] = gate
        self.set_adapter(self.active_adapters)

    def take_prepended(self) -> None:
        """Make ready for prompts in front of the text.

        Raises:
            InputError: the block's forward does not take `hidden_states` first and an `attention_mask`.
        """
        if self.prepended is None:
            assert self.attachment.flow is not None
            self.prepended = PrependedBlock(self, self.attachment.flow)

    def cast_adapter(self, adapter_name: str, *, at_least_float32: bool) -> None:
        """Give an adapter's generator and gate here the block's dtype, or float32 if theirs is shorter."""
        if adapter_name not in self.spt_generator:
            return
        generator = self.spt_generator[adapter_name]
        if not at_least_float32:
            dtype = next(p.dtype for p in self.base_layer.parameters() if p.is_floating_point())
        elif next(generator.parameters()).dtype.itemsize < torch.float32.itemsize:
            dtype = torch.float32
        else:
            return
        generator.to(dtype)
        if adapter_name in self.spt_gate:
            gate = self.spt_gate[adapter_name]
            self.spt_gate[adapter_name] = nn.Parameter(gate.detach().to(dtype), requires_grad=gate.requires_grad)

    def drop(self, adapter_name: str) -> None:
        """Take an adapter's generator and gate away from this block, if it has them here."""
        for container in (self.spt_generator, self.spt_gate):
            if adapter_name in container:
                del container[adapter_name]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Prompts are made of the states they act on, not weights, and cannot be merged.

        Raises:
            InputError: always.
        """
        raise InputError("SPT adapters cannot be merged into the backbone; use unload() to get the backbone back.")

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """PEFT's way to get the wrapped block back; takes everything off that was hooked on."""
        if merge:
            self.merge()
        if self.prepended is not None:
            self.prepended.remove()
        return self.base_layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block with the prompts of the active adapter, if it has any here."""
        adapter = self.active_spt_adapter()
        if adapter is not None:
            settings = self.attachment.settings_of(adapter)
            if settings.config.placement == "prepend" and self.prepended is not None:
                return self.prepended.run(adapter, settings, args, kwargs)
            if self.index in settings.layers:
                args, kwargs = self._add(adapter, settings, args, kwargs)
        if self.prepended is not None:
            return self.prepended.run_bare(args, kwargs)
        return self.base_layer(*args, **kwargs)

    def active_spt_adapter(self) -> str | None:
        """The adapter whose prompts are used, or None.

        Raises:
            InputError: several SPT adapters are active.
        """
        if self.disable_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.spt_settings]
        if len(active) > 1:
            raise InputError(
                f"Adapters {', '.join(active)} are all active; prompts of several adapters cannot be combined. Choose "
                "one with set_adapter."
            )
        return active[0] if active else None

    def gate(self, adapter: str, settings: AdapterSettings, batch: int) -> torch.Tensor | None:
        """This layer's gate a_i, (1,) or (batch,); None on a final network.

        Raises:
            InputError: gate values were given that do not fit the batch and the candidate layers.
        """
        if not settings.config.searching:
            return None
        values = self.attachment.context.gate_values
        if values is None:
            return torch.sigmoid(at_least_float32(self.spt_gate[adapter]))
        if values.dim() != 2 or values.shape[0] not in (1, batch) or values.shape[1] != len(settings.layers):
            raise InputError(
                f"Gate values have the shape {tuple(values.shape)}; for this batch of {batch} and "
                f"{len(settings.layers)} candidate layers it must be {(batch, len(settings.layers))}, or 1 row."
            )
        return at_least_float32(values[:, settings.layers.index(self.index)].to(self.spt_gate[adapter].device))

    def _add(
        self, adapter: str, settings: AdapterSettings, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the block with h + a_i G_i(h) in place of the states h."""
        states = args[0] if args else kwargs[self.states_name]
        width = self.attachment.backbone.hidden_size
        if states.shape[-1] != width:
            raise InputError(
                f"Block {self.index} ({type(self.base_layer).__name__}) gets states of width {states.shape[-1]}, but "
                f"the backbone's hidden size is {width}; prompts need blocks of one width. Name another list: "
                "SPTConfig(layers_path='...')."
            )
        device = hooked_device(self.base_layer)
        if device is not None:
            states = states.to(device)
        generator = self.spt_generator[adapter]
        offset = generator(self._cast_input_dtype(states, next(generator.parameters()).dtype))
        gate = self.gate(adapter, settings, states.shape[0])
        if gate is not None:
            offset = gate.view(-1, *[1] * (states.dim() - 1)).to(offset.dtype) * offset
        states = states + offset.to(states.dtype)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, self.states_name: states})


class PrependedBlock:
    """A block with prompts in front of the text: it puts them there or renews them, and takes them off after the last.

    It binds the call of the block by argument name, because positions and types differ between families and between
    versions of transformers, and extends mask and positions.

    Args:
        block: the wrapped block.
        flow: what the blocks of the model share.

    Raises:
        InputError: the block's forward does not take `hidden_states` first and an `attention_mask`.
    """

    def __init__(self, block: PromptedBlock, flow: PromptFlow) -> None:
        self.block = block
        self.index = block.index
        self.flow = flow
        self.positions = argument_positions(block.base_layer.forward)
        names = list(self.positions)
        if names[:1] != ["hidden_states"] or "attention_mask" not in names:
            raise InputError(
                f"{type(block.base_layer).__name__} takes ({', '.join(names)}); prompts in front of the text need "
                "blocks that take hidden_states first and an attention_mask. Choose another layers_path, or "
                "placement='add'."
            )
        self.weighted_probabilities = None
        if flow.backbone.weighted_attention is not None:
            attention = attrgetter(flow.backbone.weighted_attention)(block.base_layer)
            self.weighted_probabilities = WeightedProbabilities(attention)

    def remove(self) -> None:
        """Take everything off that was hooked on."""
        if self.weighted_probabilities is not None:
            self.weighted_probabilities.remove()

    def run_bare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on (batch, length, d) without prompts in front."""
        call = _Call(self.positions, args, kwargs)
        refuse_prompted_cache(call.cache, self.index)
        if self.weighted_probabilities is not None:
            call["attention_mask"] = call["attention_mask"].to(torch.bool)
        return self.block.base_layer(*call.args, **call.kwargs)

    def run(self, adapter: str, settings: AdapterSettings, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on (batch, length, d) or, above the first prompt layer, on (batch, m + length, d)."""
        if "_is_replica" in self.block.__dict__:
            raise InputError(
                "torch.nn.DataParallel runs replicas in threads, which prompts do not support; start one process a GPU "
                "(accelerate launch ...) or show one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if self.index < settings.layers[0]:
            return self.run_bare(args, kwargs)
        call = _Call(self.positions, args, kwargs)
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
        check_length(self.block.base_layer, hidden_states.shape[1] + past_length + (0 if inserting else m))
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
        output = self.block.base_layer(*call.args, **call.kwargs)
        last = self.index == flow.backbone.num_layers - 1
        return self._take_off(output, m if inserting else 0) if last else output

    def _cache_layer(self, call: _Call, m: int, adapter: str) -> PromptedCacheLayer | None:
        cache = call.cache
        return None if cache is None else prompted_cache_layer(cache, self.index, m, adapter)

    def _pass_gate(
        self, adapter: str, settings: AdapterSettings, batch: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """This layer's gate values and the presence below it; the presence in the flow moves up by one layer."""
        gate = self.block.gate(adapter, settings, batch)
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
        generator = self.block.spt_generator[adapter]
        dtype = next(generator.parameters()).dtype
        source = self.flow.source_mask(text) if config.generator in INSTANCE_AWARE else None
        reading = self.block._cast_input_dtype(text, dtype)
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

    def _extend_positions(self, call: _Call, hidden_states: torch.Tensor, m: int) -> None:
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


class _Call:
    """Arguments of a call, read and replaced by name and passed on in the places where they came."""

    def __init__(self, positions: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.positions = positions
        self.args = list(args)
        self.kwargs = dict(kwargs)

    def get(self, name: str) -> Any:
        index = self.positions.get(name)
        if index is not None and index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name)

    __getitem__ = get

    @property
    def cache(self) -> Any:
        """Keys and values of what came before; None without any.

        They are what the block takes by a known name, else what has such a name, else whatever is a cache: were one
        overlooked because it has been renamed, text after the first would be read wrongly, and nothing would tell.
        """
        named = (self.get(name) for name in sorted(CACHE_NAMES, key=lambda name: name not in self.positions))
        others = (value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Cache))
        return next((value for value in chain(named, others) if value is not None), None)

    def __setitem__(self, name: str, value: Any) -> None:
        index = self.positions.get(name)
        if index is not None and index < len(self.args):
            self.args[index] = value
        elif index == len(self.args):
            # Reentrant gradient checkpointing carries gradients through positional arguments only, and a gated mask
            # has them.
            self.kwargs.pop(name, None)
            self.args.append(value)
        else:
            self.kwargs[name] = value
