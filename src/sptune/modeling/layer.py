"""`SPTLayer`: one transformer block with the prompts of each adapter, added to its tokens or in front of the text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.modeling.attachment import Attachment
from sptune.modeling.backbones import hooked_device
from sptune.modeling.calls import argument_positions
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.gates import at_least_float32
from sptune.modeling.generators import build_generator
from sptune.modeling.second_run import context_of_first_run, in_backward, keep_context

if TYPE_CHECKING:
    from sptune.modeling.mixed_batch import MixedBatch
    from sptune.modeling.prepend.prepended_layer import PrependedLayer


CANNOT_MERGE = "SPT adapters cannot be merged into the backbone; use unload() to get the backbone back."


class SPTLayer(nn.Module, BaseTunerLayer):
    """A frozen block and, for each adapter with this prompt layer, a generator and in a supernet a gate.

    An adapter with `placement="add"` adds a_i G_i(h) to each token's state h before the block runs (method section 8).
    For `placement="prepend"` see `PrependedLayer`.

    Args:
        base_layer: the block of the backbone.
        index: its layer index.
        attachment: what the wrapped blocks of the model share.
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
        self.prepended: PrependedLayer | None = None

    @property
    def spt_settings(self) -> dict[str, AdapterSettings]:
        """The settings of all adapters of the model, by name; one dictionary for all blocks."""
        return self.attachment.settings

    def __getattr__(self, name: str) -> Any:
        # Some models read attributes of their blocks (Qwen2's attention_type). Private ones are not passed on: if the
        # block's hook looked like this module's, accelerate would replace this module's forward with the block's.
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

    def prepare_prepend(self) -> None:
        """Prepare the block for prompts in front of the text.

        Raises:
            InputError: the block's forward does not take `hidden_states` first and an `attention_mask`.
        """
        if self.prepended is None:
            # Imported here so that placement="add" never loads what only "prepend" needs.
            from sptune.modeling.prepend.prepended_layer import PrependedLayer

            assert self.attachment.prepend is not None
            self.prepended = PrependedLayer(self, self.attachment.prepend)

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
        """Remove an adapter's generator and gate from this block, if it has them here."""
        for container in (self.spt_generator, self.spt_gate):
            if adapter_name in container:
                del container[adapter_name]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge: prompts depend on the hidden states and cannot become weights.

        Raises:
            InputError: always.
        """
        raise InputError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Do nothing: adapters are never merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the wrapped block, without hooks; PEFT calls this in `unload`."""
        if merge:
            self.merge()
        if self.prepended is not None:
            self.prepended.remove()
        return self.base_layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block with the prompts of the active adapter, or of each row's adapter, if it has any here."""
        states = args[0] if args else kwargs.get(self.states_name)
        if isinstance(states, torch.Tensor) and not torch.compiler.is_compiling():
            attached = self.attachment
            if in_backward() and attached.keeps_contexts:
                with context_of_first_run(attached.context, states, self.index):
                    return self._run(args, kwargs)
            attached.keeps_contexts |= attached.context.is_replacing
            # Without gradients, the context is kept for reentrant checkpointing only, whose input requires one.
            if attached.keeps_contexts or torch.is_grad_enabled() or states.requires_grad:
                keep_context(attached.context, states)
        return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mixed_batch = self.attachment.context.mixed_batch
        if mixed_batch is not None and not self.disable_adapters:
            return self._run_mixed(mixed_batch, args, kwargs)
        adapter = self.active_spt_adapter()
        if adapter is not None:
            settings = self.attachment.settings_of(adapter)
            if settings.config.placement == "prepend" and self.prepended is not None:
                return self.prepended.run(adapter, settings, args, kwargs)
            if self.index in settings.layers:
                args, kwargs = self._change_states(partial(self._add, adapter, settings), args, kwargs)
        return self._run_bare(args, kwargs)

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
                f"Adapters {', '.join(active)} are all active; prompts of several adapters cannot be combined. "
                "Activate one with set_adapter."
            )
        return active[0] if active else None

    def gate(self, adapter: str, settings: AdapterSettings, states: torch.Tensor) -> torch.Tensor | None:
        """This layer's gate a_i, (1,) or (batch,), for states (batch, ..., d); None on a final network.

        Raises:
            InputError: gate values were given that do not fit the batch and the candidate layers.
        """
        if not settings.config.searching:
            return None
        values = self.attachment.context.gate_values
        if values is None:
            return torch.sigmoid(at_least_float32(self.spt_gate[adapter]))
        batch = states.shape[0]
        # Models of multiple choice make one row of each choice, side by side. Of states (tokens, d) no row is known.
        if values.dim() == 2 and states.dim() > 2 and 1 < values.shape[0] < batch and batch % values.shape[0] == 0:
            values = values.repeat_interleave(batch // values.shape[0], dim=0)
        if values.dim() != 2 or values.shape[0] not in (1, batch) or values.shape[1] != len(settings.layers):
            raise InputError(
                f"Gate values have the shape {tuple(values.shape)}; for this batch of {batch} and "
                f"{len(settings.layers)} candidate layers it must be {(batch, len(settings.layers))} or "
                f"{(1, len(settings.layers))}."
            )
        return at_least_float32(values[:, settings.layers.index(self.index)].to(self.spt_gate[adapter].device))

    def _run_bare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.prepended is not None:
            return self.prepended.run_bare(args, kwargs)
        return self.base_layer(*args, **kwargs)

    def _run_mixed(self, mixed_batch: MixedBatch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if mixed_batch.has_prompts_at(self.index):
            args, kwargs = self._change_states(
                lambda states: mixed_batch.add_offsets(self.index, states, self._cast_input_dtype), args, kwargs
            )
        if mixed_batch.prompts is not None and self.prepended is not None:
            return self.prepended.run_mixed(mixed_batch.prompts, args, kwargs)
        return self._run_bare(args, kwargs)

    def _add(self, adapter: str, settings: AdapterSettings, states: torch.Tensor) -> torch.Tensor:
        """The states h, (batch, ..., d), with a_i G_i(h) added to them."""
        generator = self.spt_generator[adapter]
        offset = generator(self._cast_input_dtype(states, next(generator.parameters()).dtype))
        gate = self.gate(adapter, settings, states)
        if gate is not None:
            offset = gate.view(-1, *[1] * (states.dim() - 1)).to(offset.dtype) * offset
        return states + offset.to(states.dtype)

    def _change_states(
        self, change: Callable[[torch.Tensor], torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the block with other states, (batch, ..., d), in place of those given."""
        states = args[0] if args else kwargs[self.states_name]
        width = self.attachment.backbone.hidden_size
        if states.shape[-1] != width:
            raise InputError(
                f"Block {self.index} ({type(self.base_layer).__name__}) gets states of width {states.shape[-1]}, but "
                f"the backbone's hidden size is {width}; prompts need blocks of one width. Name another list: "
                "SPTConfig(layers_path='...')."
            )
        device = hooked_device(self.base_layer)
        states = change(states if device is None else states.to(device))
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, self.states_name: states})
