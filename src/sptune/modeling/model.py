"""`SPTModel` attaches prompts to a backbone as a PEFT tuner."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from sptune.config import SPTConfig, resolve_prompt_layers
from sptune.errors import InputError
from sptune.modeling.attachment import Attachment
from sptune.modeling.backbones import (
    Backbone,
    find_backbone,
    frozen_part,
    keep_differentiable,
    list_at,
    turn_off_dropout,
    untrained_modules,
)
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.gates import gate_logits
from sptune.modeling.layer import CANNOT_MERGE, SPTLayer
from sptune.modeling.mixed_batch import MixedBatch
from sptune.modeling.modules_to_save import adopt_wrappers, find_modules_to_save, unwrap_modules, wrap_modules
from sptune.modeling.size_checks import check_generators
from sptune.renamed import renamed_property


class SPTModel(BaseTuner):
    """Selective Prompt Tuning of a frozen transformer.

    `peft.get_peft_model` makes it; it is `peft_model.base_model`. The blocks of prompt layers become `SPTLayer`s; with
    `placement="prepend"` all blocks do.

    Raises:
        InputError: the backbone cannot take prompts (see `sptune.modeling.backbones.find_backbone`).
    """

    prefix = "spt_"
    tuner_layer_cls = SPTLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT reads it from the class)

    # -- what PEFT calls -------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        peft_config, backbone = cast(SPTConfig, peft_config), self._found
        layers = resolve_prompt_layers(peft_config, backbone.num_layers)
        backbone.check_layers(layers)
        check_generators(peft_config, layers, backbone, self.model)
        # The saved configuration names the layers, so that it does not depend on the defaults of another version.
        if peft_config.searching:
            peft_config.candidate_layers = layers
        else:
            peft_config.prompt_layers = layers
        peft_config.target_modules = {f"{backbone.layers_name}.{layer}" for layer in layers}
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        return key in (cast(SPTConfig, peft_config).target_modules or ())

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        peft_config = cast(SPTConfig, peft_config)
        # All state is set here and not in the constructor, which does not run for a second adapter.
        attached = _find_attachment(self.model) or Attachment(self.model, self._found)
        self._attached = attached
        _set_layers(attached, adapter_name, peft_config, self.active_adapters, parent.training)
        block = cast(SPTLayer, attached.backbone.layers[int(target_name)])
        block.update_layer(adapter_name, peft_config)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Adapter files do not name the adapter. PEFT removes the name where it directly precedes a parameter, but
        # generators are modules with parameters at some depth.
        for container in SPTLayer.adapter_layer_names:
            head, found, rest = key.partition(f".{container}.{adapter_name}")
            if found:
                return f"{head}.{container}{rest}"
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's method moves the weight of a linear layer to its wrapper and back; a block has no weight of its own.
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        attached = self._attachment()
        super()._unload_and_optionally_merge(*args, **kwargs)
        unwrap_modules(self.model)
        attached.remove()
        return self.model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        mixed_batch = MixedBatch(names, self._attachment(), training=self.training)
        mixed_batch.check_batch(args, kwargs)
        with self._attachment().context.having(mixed_batch=mixed_batch):
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, as in PEFT; in a mixed batch each row has its adapter's name."""
        mixed_batch = self._attachment().context.mixed_batch
        if mixed_batch is not None:
            mixed_batch.check_batch(args, kwargs)
        return super().forward(*args, **kwargs)

    def train(self, mode: bool = True) -> SPTModel:
        """Set training mode, but leave dropout off in the frozen backbone.

        A frozen backbone needs no regularization, and without dropout the layers below the first prompt give the same
        states in every epoch. Dropout stays on in a new head, outside the backbone or in `modules_to_save`.

        Raises:
            InputError: no gradient would pass through the weights (see `keep_differentiable`).
        """
        if mode:
            keep_differentiable(self.model)
        super().train(mode)
        attached = _find_attachment(self.model)
        if mode and attached is not None:
            frozen = frozen_part(self.model, attached.backbone)
            attached.dropout_rates += turn_off_dropout(untrained_modules(frozen))
        return self

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, as in PEFT; `modules_to_save` names modules by their paths in the bare backbone.

        Raises:
            InputError: a module that cannot be trained; the model is unchanged then.
        """
        config = cast(SPTConfig, self.peft_config[adapter_name])
        _refuse_other_adapters(model)
        backbone = self._found = _backbone_for(model, config)  # for the methods that PEFT calls in inject_adapter
        if not config.modules_to_save:
            return super().inject_adapter(model, adapter_name, *args, **kwargs)
        names, in_blocks = find_modules_to_save(model, backbone, config.modules_to_save, config.task_type)
        # Full paths in the bare backbone, which PEFT does not find in wrapped blocks, and which a fresh backbone has.
        config.modules_to_save = names
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if in_blocks:  # all blocks are wrapped, so that paths in files do not depend on the prompt layers
            _wrap_blocks(self._attachment(), range(backbone.num_layers), self.active_adapters, model.training)
        active, trainable = adapter_name in self.active_adapters, not config.inference_mode
        wrap_modules(model, backbone, in_blocks, adapter_name, active=active, trainable=trainable)
        adopt_wrappers(model, self._attachment())

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # PEFT's method would also cast modules_to_save inside blocks to a dtype that the backbone does not expect.
        for block in _prompted(self._attachment()):
            block.cast_adapter(adapter_name, at_least_float32=autocast_adapter_dtype)

    def _check_merge_allowed(self) -> None:
        raise InputError(CANNOT_MERGE)

    # -- what users call -------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """The blocks of the frozen model."""
        return self._attachment().backbone

    @property
    def generator_layers(self) -> list[int]:
        """The layers with a generator in the active adapter, ascending: a supernet's candidates, or prompt layers."""
        return list(self._attachment().settings_of(self._active()).layers)

    candidate_layers = renamed_property("candidate_layers", "generator_layers")

    @property
    def takes_source_mask(self) -> bool:
        """Whether some adapter has prompts in front of the text, and the model takes a `source_mask` for them."""
        return self._attachment().prepend is not None

    def gate_parameters(self) -> dict[int, nn.Parameter]:
        """The active adapter's gate parameters alpha, each of shape (1,), by layer index.

        Raises:
            InputError: the active adapter is not a supernet.
        """
        adapter = self._active()
        if not self._attachment().settings_of(adapter).config.searching:
            raise InputError(
                f"Adapter {adapter!r} is a final network without gates; make a supernet with "
                "SPTConfig(prompt_layers='search')."
            )
        return {block.index: block.spt_gate[adapter] for block in self._generating_blocks()}

    def gate_values(self) -> torch.Tensor:
        """The gates a = sigmoid(alpha) of the active adapter, (candidates,) in [0, 1], detached, lowest layer first."""
        return torch.cat([torch.sigmoid(alpha.detach().float()).cpu() for alpha in self.gate_parameters().values()])

    def set_gate_values(self, values: torch.Tensor | list[float]) -> None:
        """Set the gates of the active adapter; 0.0 and 1.0 are kept exactly.

        Args:
            values: (candidates,) in [0, 1], lowest layer first.

        Raises:
            InputError: not one value a candidate layer, or a value outside [0, 1].
        """
        gates = self.gate_parameters()
        wanted = torch.as_tensor(values, dtype=torch.float32).flatten()
        if len(wanted) != len(gates):
            raise InputError(f"{len(wanted)} gate values were given for {len(gates)} candidate layers {list(gates)}.")
        with torch.no_grad():
            for alpha, logit in zip(gates.values(), gate_logits(wanted), strict=True):
                alpha.copy_(logit)

    def generator_parameters(self) -> dict[int, list[nn.Parameter]]:
        """The active adapter's generator parameters, by layer index."""
        adapter = self._active()
        return {block.index: list(block.spt_generator[adapter].parameters()) for block in self._generating_blocks()}

    def gating(self, values: torch.Tensor) -> AbstractContextManager[None]:
        """A context manager: in the forwards inside, gate i of example b is values[b, i] and not sigmoid(alpha_i).

        Args:
            values: (batch, candidates), or (1, candidates) for the same gates in every example; in [0, 1]. They get
                gradients. Where the model makes several rows of an example, as for multiple choice, all have its gates.
        """
        return self._attachment().context.having(gate_values=values)

    def prompting_at(self, layers: Sequence[int]) -> AbstractContextManager[None]:
        """A context manager: in the forwards inside, a supernet has prompts at just these layers, and no gates.

        Args:
            layers: some of the candidate layers, at least one.

        Raises:
            InputError: a layer that is not a candidate, or no layer.
        """
        adapter = self._active()
        settings = self._attachment().settings_of(adapter)
        unknown = [layer for layer in layers if layer not in settings.layers]
        if unknown or not layers:
            raise InputError(f"Layers {list(layers)} were asked for; choose some of {list(settings.layers)}.")
        config = dataclasses.replace(settings.config, prompt_layers=sorted(layers), candidate_layers=None)
        return self._attachment().context.having(adapters={adapter: AdapterSettings(tuple(sorted(layers)), config)})

    def record_final_states(self) -> AbstractContextManager[list[torch.Tensor]]:
        """A context manager: collects the output of the last block, (batch, length, d) without prompts, in a list."""
        return _recorded_states(self.backbone.layers[-1])

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse PEFT's weighted sum of adapters: prompts are not linear in the weights of their generators.

        Raises:
            InputError: always.
        """
        raise InputError(
            "add_weighted_adapter cannot add up SPT adapters: prompts are not linear in the generators' weights. Train "
            "one adapter on all data, or average the adapters' outputs, activating each in turn with set_adapter."
        )

    def _attachment(self) -> Attachment:
        if self._attached.removed:
            raise InputError("No prompts are attached to this model any more: it was unloaded.")
        return self._attached

    def _active(self) -> str:
        if len(self.active_adapters) != 1:
            raise InputError(f"One adapter must be active, but {self.active_adapters} are; use set_adapter.")
        return self.active_adapters[0]

    def _generating_blocks(self) -> list[SPTLayer]:
        adapter = self._active()
        return [block for block in _prompted(self._attachment()) if adapter in block.spt_generator]


def _find_attachment(model: nn.Module) -> Attachment | None:
    for module in model.modules():
        if isinstance(module, SPTLayer):
            return module.attachment
    return None


def _backbone_for(model: nn.Module, config: SPTConfig) -> Backbone:
    """The blocks of a model, as an adapter of this placement needs them.

    Raises:
        InputError: there are none, or the model has prompts at other blocks.
    """
    attached = _find_attachment(model)
    known: Backbone | None = None
    if attached is not None and config.placement == "prepend":
        known = attached.prepend.backbone if attached.prepend is not None else None
    elif attached is not None:
        known = attached.backbone
    if attached is None or known is None:
        return find_backbone(model, config.layers_path, config.placement)
    if config.layers_path is None:
        config.layers_path = next((one.config.layers_path for one in attached.settings.values()), None)
    elif list_at(model, config.layers_path) is not known.layers:
        raise InputError(
            f"layers_path={config.layers_path!r}: this model has prompts at {known.layers_name!r}, and all adapters of "
            "a model have theirs at the same list of blocks. Load the backbone again for this adapter."
        )
    return known


def _refuse_other_adapters(model: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) and not isinstance(module, SPTLayer) for module in model.modules()):
        raise InputError(
            "The model holds another PEFT adapter, which SPT would train without saving it, and remove in unload(); "
            "merge it first (merge_and_unload) or unload it."
        )


def _set_layers(
    attached: Attachment, adapter_name: str, config: SPTConfig, active_adapters: list[str], training: bool
) -> None:
    """Wrap the blocks that an adapter needs, and note its layers."""
    attached.prepare_for(config)
    layers = resolve_prompt_layers(config, attached.backbone.num_layers)
    known = attached.settings.get(adapter_name)
    if known is not None and known.config is not config:
        # A second get_peft_model on the same backbone replaces the adapter of that name, at other layers too.
        for block in _prompted(attached):
            block.drop(adapter_name)
    attached.settings[adapter_name] = AdapterSettings(tuple(layers), config)
    prepend = config.placement == "prepend"
    _wrap_blocks(attached, range(attached.backbone.num_layers) if prepend else layers, active_adapters, training)
    for block in _prompted(attached) if prepend else ():
        block.prepare_prepend()


def _wrap_blocks(attached: Attachment, layers: Iterable[int], active_adapters: list[str], training: bool) -> None:
    blocks = attached.backbone.layers
    for index in layers:
        if not isinstance(blocks[index], SPTLayer):
            block = SPTLayer(blocks[index], index, attached)
            block.train(training)
            block.set_adapter(active_adapters)
            blocks[index] = block


@contextmanager
def _recorded_states(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    states: list[torch.Tensor] = []

    def keep(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()


def _prompted(attached: Attachment) -> list[SPTLayer]:
    """The wrapped blocks, lowest layer first."""
    return [block for block in attached.backbone.layers if isinstance(block, SPTLayer)]
