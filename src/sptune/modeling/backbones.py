"""Finding the blocks of a backbone.

Prompts that are added to the tokens need a list of blocks that take hidden states first, which is found in any model.
What prompts in front of the text need to know of a model family is in `sptune.modeling.prepend.families`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from sptune.errors import InputError
from sptune.modeling.calls import argument_positions

# Names of the first argument of blocks, the hidden states, and of the hidden size in configurations.
STATE_NAMES = ("hidden_states", "x", "hidden_state", "inputs", "input", "features", "embeddings")
HIDDEN_SIZE_NAMES = ("hidden_size", "d_model", "n_embd", "dim")

# Rotary tables of these types are rebuilt from the longest position of a call, which a second call for the prompts
# would disturb.
REFUSED_ROPE_TYPES = ("dynamic", "longrope")

# A module, the name of an attribute, and its value.
DropoutRates = list[tuple[nn.Module, str, float]]


@dataclass(frozen=True)
class Backbone:
    """The blocks of a model.

    Attributes:
        family: the model type.
        base_model: the module whose forward runs the blocks.
        layers: the blocks, in order.
        layers_name: dotted name of the block list, from the model that was given.
        hidden_size: d.
        num_layers: L.
        weighted_attention: dotted path from a block to the self-attention whose probabilities prepended prompts scale;
            None in most families and with `placement="add"`.
    """

    family: str
    base_model: nn.Module
    layers: nn.ModuleList
    layers_name: str
    hidden_size: int
    num_layers: int
    weighted_attention: str | None = None

    def check_layers(self, layers: list[int]) -> None:
        """Refuse layers that cannot have a prompt; in most families all can."""


def find_backbone(model: nn.Module, layers_path: str | None = None, placement: str | None = "add") -> Backbone:
    """Find the blocks of a model: the outermost list of blocks.

    Args:
        model: a model, with or without a head.
        layers_path: dotted path from `model` to its list of blocks, where it cannot be found or there are several.
        placement: of the prompts; "prepend" takes only what `sptune.modeling.prepend.families` knows.

    Raises:
        InputError: there is no such list, more than one, or one that cannot take prompts of this placement.
    """
    if placement == "prepend":
        # Imported here so that placement="add" never loads what only "prepend" needs.
        from sptune.modeling.prepend.families import find_prepend_backbone

        return find_prepend_backbone(model, layers_path)
    _refuse_shared_blocks(model)
    name = _only_block_list(model) if layers_path is None else layers_path
    layers = list_at(model, name)
    base_model = _owner(model, name)
    if not argument_positions(unwrapped(layers[0]).forward):
        raise InputError(
            f"{type(unwrapped(layers[0])).__name__}.forward names no first argument, which must be the hidden states; "
            "choose another layers_path."
        )
    return Backbone(
        family=getattr(getattr(base_model, "config", None), "model_type", type(base_model).__name__),
        base_model=base_model,
        layers=layers,
        layers_name=name,
        hidden_size=_hidden_size(base_model),
        num_layers=len(layers),
    )


def unwrapped(block: nn.Module) -> nn.Module:
    """The block of the backbone inside the wrappers of PEFT methods."""
    while isinstance(block, BaseTunerLayer):
        block = cast(nn.Module, block.get_base_layer())
    return block


def hooked_device(block: nn.Module) -> torch.device | None:
    """The device to which accelerate's hook moves the arguments of a block; None without a hook.

    In a model that is split over devices, hidden states may come from another device. With offloading, the weights are
    elsewhere between calls.
    """
    hook: Any = getattr(block, "_hf_hook", None)
    devices = (getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,)))
    return next((torch.device(device) for device in devices if device is not None), None)


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference, as it does on some CPUs; no gradient passes them.

    Raises:
        InputError: the weights are repacked already.
    """
    layers: list[Any] = [one for one in model.modules() if getattr(one, "support_avx512bf16_for_cpu", False)]
    if any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers):
        raise InputError(
            "bitsandbytes has repacked the 4-bit weights for inference on this CPU, which it does in evaluation mode, "
            "and gradients do not pass through them any more. Load the model again and call train() before its first "
            "forward."
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def list_at(model: nn.Module, layers_path: str) -> nn.ModuleList:
    """The list of blocks at a dotted path from the model.

    Raises:
        InputError: there is no list at this path.
    """
    found = follow(model, layers_path)
    if isinstance(found, nn.ModuleList):
        return found
    what = "there is nothing of that name" if found is None else f"that is a {type(found).__name__}"
    raise InputError(
        f"layers_path={layers_path!r} does not lead to a list of blocks in {type(model).__name__}: {what}. "
        f"Lists in this model: {_lists(model)}."
    )


def follow(module: nn.Module, path: str) -> Any:
    """The attribute at a dotted path from a module, or None."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def rope_type(config: Any) -> str | None:
    """The type of the rotary embeddings in a configuration; None if it names none."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return parameters.get("rope_type", parameters.get("type"))


def _only_block_list(model: nn.Module) -> str:
    """The dotted name of the model's one list of blocks."""
    found = _block_lists(model)
    if not found:
        raise InputError(
            f"No list of blocks was found in {type(model).__name__}; name it: SPTConfig(layers_path='...'). "
            f"Lists in this model: {_lists(model)}."
        )
    name = max(found, key=lambda one: len(found[one]))
    if len(found) > 1:
        # An encoder and a decoder, or a tower for images and one for text: only the user knows which to tune.
        listed = ", ".join(f"{one!r} ({len(layers)} blocks)" for one, layers in found.items())
        raise InputError(
            f"{type(model).__name__} has several lists of blocks: {listed}. Name the one to tune: "
            f"SPTConfig(layers_path={name!r})."
        )
    return name


def _block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost lists of two or more blocks, by name."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        within = any(name.startswith(outer + ".") for outer in lists)
        if not isinstance(module, nn.ModuleList) or within or len(module) < 2:
            continue
        # The blocks of a hybrid model have two or three types.
        types = {type(unwrapped(block)) for block in module}
        if len(types) <= 3 and all(_may_be_block(unwrapped(block)) for block in module):
            lists[name] = module
    return lists


def _may_be_block(block: nn.Module) -> bool:
    """Whether a module has submodules, matrices among its weights, and hidden states as its first argument.

    Convolutions in front of the blocks have no matrices, and projections and embeddings have no submodules.
    """
    composed = next(block.children(), None) is not None and any(p.dim() == 2 for p in block.parameters())
    return composed and next(iter(argument_positions(block.forward)), None) in STATE_NAMES


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The innermost transformers model that holds the module of this name; `model` if there is none."""
    parents = [".".join(name.split(".")[:size]) for size in range(name.count(".") + 1)]
    owners = [model.get_submodule(parent) for parent in parents]
    return next((owner for owner in reversed(owners) if isinstance(owner, PreTrainedModel)), model)


def _refuse_shared_blocks(model: nn.Module) -> None:
    """Refuse blocks that run several times in a forward (ALBERT): one generator would act at all their layers."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "num_hidden_groups", None) is not None:
            raise InputError(
                f"Models of type {config.model_type!r} run the same block at each of their {config.num_hidden_layers} "
                "layers, so a prompt cannot be at one of them alone; choose a backbone with a block for each layer."
            )


def _hidden_size(base_model: nn.Module) -> int:
    config: Any = getattr(base_model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for one in (config, text):
        for name in HIDDEN_SIZE_NAMES:
            if isinstance(getattr(one, name, None), int):
                return int(getattr(one, name))
    raise InputError(f"The hidden size of {type(base_model).__name__} is not known; set config.hidden_size.")


def _lists(model: nn.Module) -> str:
    return ", ".join(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)) or "none"


def frozen_part(model: nn.Module, backbone: Backbone) -> nn.Module:
    """The model without its head: the module in which dropout stays off in training."""
    inner = getattr(model, "base_model", None)
    holds = isinstance(inner, nn.Module) and any(module is backbone.layers for module in inner.modules())
    return cast(nn.Module, inner) if holds else backbone.base_model


def untrained_modules(frozen: nn.Module) -> list[nn.Module]:
    """The modules of a frozen part but those in `modules_to_save`."""
    modules = list(frozen.modules())
    wrappers = [module for module in modules if isinstance(module, ModulesToSaveWrapper)]
    trained = {id(module) for wrapper in wrappers for module in wrapper.modules_to_save.modules()}
    return [module for module in modules if id(module) not in trained]


def turn_off_dropout(modules: Iterable[nn.Module]) -> DropoutRates:
    """Set modules to evaluation mode.

    Gradient checkpointing works in training mode only. So modules that do it stay in that mode, and the rates of the
    dropout that they compute themselves become 0.

    Returns:
        These rates as they were, for `restore_dropout`.
    """
    rates: DropoutRates = []
    for module in modules:
        inner = unwrapped(module)
        if not getattr(inner, "gradient_checkpointing", False):
            module.training = False
            continue
        rates += [(inner, name, rate) for name, rate in vars(inner).items() if "drop" in name and _is_rate(rate)]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    return rates


def restore_dropout(rates: DropoutRates) -> None:
    """Set rates back to what they were."""
    for module, name, rate in rates:
        setattr(module, name, rate)


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1
