"""Finding and wrapping the modules that `modules_to_save` names, in blocks too.

PEFT matches names with the ends of the modules' paths and wraps what it finds in `ModulesToSaveWrapper`. In wrapped
blocks, paths are longer than in the backbone that users know, and PEFT takes the direct children of a block for a part
of the adapter. So modules in blocks are found and wrapped here. Modules that cannot be trained are refused before
anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import cast

from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from sptune.errors import InputError
from sptune.modeling.attachment import Attachment
from sptune.modeling.backbones import Backbone, unwrapped
from sptune.modeling.layer import SPTLayer
from sptune.modeling.saved_module import SavedModule

# PEFT adds these names itself for these tasks, and a backbone has only one of them.
HEADS_OF_TASKS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class NamedModule:
    """A module of the backbone.

    Attributes:
        name: its path in the bare backbone.
        block: index of the block that it is in, None outside of blocks.
        module: the module itself; without its wrapper if an adapter saves it.
        wrapped: whether an adapter saves it.
    """

    name: str
    block: int | None
    module: nn.Module
    wrapped: bool


def find_modules_to_save(
    model: nn.Module, backbone: Backbone, names: list[str], task_type: str | None
) -> tuple[list[str], list[NamedModule]]:
    """Find the modules that `modules_to_save` names.

    Args:
        model: the backbone with its head, bare or with adapters.
        backbone: its blocks.
        names: ends of paths in the bare backbone.
        task_type: PEFT's; for some task types PEFT adds names of heads, of which not all must exist.

    Returns:
        The names, and the modules in blocks. A name that matches modules in blocks is replaced by the paths of all its
        matches.

    Raises:
        InputError: a name matches nothing that can be trained, or a module cannot be trained as a whole.
    """
    modules = list(_named_modules(model, backbone))
    found: dict[str, NamedModule] = {}
    resolved: dict[str, None] = {}
    for name in names:
        matches = [one for one in modules if one.name.endswith(name)]
        has_weights = any(_has_weights(one.module) for one in matches)
        if not has_weights and name not in HEADS_OF_TASKS.get(task_type or "", ()):
            raise InputError(_nothing_to_train(name, [one.name for one in matches], backbone))
        found |= {one.name: one for one in matches}
        in_blocks = any(one.block is not None for one in matches)
        resolved |= dict.fromkeys([one.name for one in matches] if in_blocks else [name])
    for one in found.values():
        _check_trainable(one, backbone)
    _check_nesting(found, [one.name for one in modules if one.wrapped])
    return list(resolved), [one for one in found.values() if one.block is not None]


def wrap_modules(
    model: nn.Module,
    backbone: Backbone,
    modules: list[NamedModule],
    adapter_name: str,
    *,
    active: bool,
    trainable: bool,
) -> None:
    """Wrap modules in wrapped blocks, as PEFT does outside of blocks.

    Args:
        model: the backbone with its head.
        backbone: its blocks, all of them wrapped.
        modules: the modules to wrap; wrapped ones get a copy for this adapter.
        adapter_name: the adapter that trains them.
        active: whether the adapter is active.
        trainable: whether an active adapter is trained.
    """
    for one in modules:
        block = f"{backbone.layers_name}.{one.block}"
        path = f"{block}.base_layer{one.name.removeprefix(block)}"
        wrapper = model.get_submodule(path)
        if isinstance(wrapper, ModulesToSaveWrapper):
            wrapper.update(adapter_name)
        else:
            wrapper = ModulesToSaveWrapper(wrapper, adapter_name)
            wrapper.set_adapter([])
            model.set_submodule(path, wrapper)
        if active:
            wrapper.set_adapter(adapter_name, inference_mode=not trainable)


def adopt_wrappers(model: nn.Module, attachment: Attachment) -> None:
    """Turn PEFT's new wrappers of modules into ours."""
    for module in model.modules():
        if type(module) is ModulesToSaveWrapper:
            SavedModule.adopt(module, attachment)


def unwrap_modules(model: nn.Module) -> None:
    """Replace wrappers by the modules they train, in blocks too, where PEFT does not look."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            model.set_submodule(name, module.unload_and_optionally_merge_module(False, False, None))


def _named_modules(model: nn.Module, backbone: Backbone) -> Iterator[NamedModule]:
    indices = {id(block): index for index, block in enumerate(backbone.layers)}

    def visit(module: nn.Module, name: str, block: int | None) -> Iterator[NamedModule]:
        wrapped = isinstance(module, AuxiliaryTrainingWrapper)
        own = cast(nn.Module, module.original_module) if wrapped else module
        if name:
            yield NamedModule(name, block, own, wrapped)
        if isinstance(module, SPTLayer):
            own = module.base_layer
        for child_name, child in own.named_children():
            inside = indices.get(id(module), block)
            yield from visit(child, f"{name}.{child_name}".lstrip("."), inside)

    return visit(model, "", None)


def _nothing_to_train(name: str, without_weights: list[str], backbone: Backbone) -> str:
    if without_weights:
        return f"modules_to_save names {name!r}, but {without_weights[0]} has no weights to train; leave it out."
    return (
        f"modules_to_save names {name!r}, but no module's path in the backbone ends with it. Names are ends of paths, "
        f"not patterns, such as '{backbone.layers_name}.0.{_parts(backbone, 0)[0]}'; model.named_modules() lists all "
        "paths."
    )


def _check_trainable(one: NamedModule, backbone: Backbone) -> None:
    inside = {id(module) for module in one.module.modules()}
    if inside & {id(block) for block in backbone.layers}:
        held = [index for index, block in enumerate(backbone.layers) if id(block) in inside]
        which = f"block {held[0]}" if len(held) == 1 else f"{len(held)} blocks"
        parts = [f"{backbone.layers_name}.{held[0]}.{part}" for part in _parts(backbone, held[0])]
        raise InputError(
            f"modules_to_save matches {one.name}, which holds {which} of the backbone, but SPT trains parts of blocks "
            f"only. Name parts instead, such as {parts}."
        )
    if isinstance(one.module, CONTAINERS):
        entries = [f"{one.name}.{entry}" for entry, _ in one.module.named_children()]
        raise InputError(
            f"modules_to_save matches {one.name}, a {type(one.module).__name__}, which is never called as a whole. "
            f"Name what is in it: {entries}."
        )
    if backbone.weighted_attention is None:
        return
    for block in backbone.layers:
        attention = attrgetter(backbone.weighted_attention)(block)
        if id(attention) in inside:
            parts = [part for part, module in attention.named_children() if _has_weights(module)]
            raise InputError(
                f"modules_to_save matches {one.name}, but in models of type {backbone.family!r} SPT weights the "
                f"probabilities of {backbone.weighted_attention}, which must stay in place. Name its parts instead: "
                f"{parts}."
            )


def _check_nesting(found: dict[str, NamedModule], wrapped: list[str]) -> None:
    for outer in sorted({*found, *wrapped}):
        inner = [name for name in sorted({*found, *wrapped}) if name.startswith(f"{outer}.")]
        if inner and (outer in found or inner[0] in found):
            raise InputError(
                f"modules_to_save matches {outer} and also {inner[0]}, which is a part of it (for this adapter or "
                "another one of the model), and a module can be trained only once. Names are ends of paths, so longer "
                "names match fewer modules."
            )


def _parts(backbone: Backbone, index: int) -> list[str]:
    return [name for name, part in unwrapped(backbone.layers[index]).named_children() if _has_weights(part)]


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
