"""`MixedBatch`: the adapter of each row of a batch, which PEFT's `adapter_names` gives.

It lasts for one call of the model or of `generate`, in one thread. It holds on to the weights that it found when the
call began, so other threads may load and delete adapters meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sptune.errors import InputError
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.layer import SPTLayer
from sptune.modeling.stacked_generators import RowGenerator, RowGroup, group_rows

if TYPE_CHECKING:
    from sptune.modeling.attachment import Attachment
    from sptune.modeling.prepend.mixed_prompts import MixedPrompts
    from sptune.modeling.saved_module import SavedModule

BASE = "__base__"

# Names of the arguments of models and of `generate` that have a row for each example.
INPUT_NAMES = ("input_ids", "inputs", "inputs_embeds", "pixel_values", "input_values", "input_features")


@dataclass(frozen=True)
class RowAdapter:
    """The weights of an adapter, as a call found them.

    Attributes:
        settings: its layers and its configuration.
        generators: what makes its prompts, by layer.
        modules: its own copies of modules that it saves, by their wrapper.
    """

    settings: AdapterSettings
    generators: dict[int, RowGenerator]
    modules: dict[SavedModule, nn.Module]


class MixedBatch:
    """The adapters of the rows of a batch.

    Args:
        names: the adapter of each row, "__base__" for none.
        attachment: of the model.
        training: whether the model is in training mode.

    Raises:
        InputError: an adapter is not known, or the model cannot run a mixed batch now.
    """

    def __init__(self, names: Iterable[str], attachment: Attachment, *, training: bool) -> None:
        if training:
            raise InputError("adapter_names cannot be used when the model is in training mode; call model.eval().")
        if attachment.context.gate_values is not None:
            raise InputError("adapter_names cannot be used inside gating(), whose gates are those of one adapter.")
        self.names = _checked_names(names, attachment)
        distinct = dict.fromkeys(name for name in self.names if name != BASE)
        self.adapters = {name: _collect(name, attachment) for name in distinct}
        self.prompts = self._prompts_in_front()
        self._added = self._with("add")
        self._groups: dict[tuple[int, int], list[RowGroup]] = {}

    def check_batch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse inputs with another number of rows than there are names.

        Args:
            args: positional arguments of the model or of `generate`.
            kwargs: the others.

        Raises:
            InputError: the numbers differ.
        """
        given = (*args[:1], *(kwargs.get(name) for name in INPUT_NAMES))
        tensor = next((one for one in given if isinstance(one, torch.Tensor)), None)
        if tensor is not None and len(tensor) != len(self.names):
            raise InputError(
                f"adapter_names has {len(self.names)} names, but the batch has {len(tensor)} rows; give each row a "
                f"name, {BASE!r} for no adapter."
            )

    def names_of(self, batch: int) -> list[str]:
        """The adapter of each row of a batch, in which beams and other copies of a row follow one another.

        Raises:
            InputError: the batch is not a multiple of the names.
        """
        copies, rest = divmod(batch, len(self.names))
        if rest:
            raise InputError(
                f"A module gets a batch of {batch} rows, which is not a multiple of the {len(self.names)} "
                "adapter_names, so the rows cannot be told apart; split the batch by adapter and use set_adapter."
            )
        return [name for name in self.names for _ in range(copies)]

    def has_prompts_at(self, layer: int) -> bool:
        """Whether some row has a prompt at a layer that is added to its tokens."""
        return any(layer in adapter.generators for adapter in self._added.values())

    def add_offsets(
        self, layer: int, states: torch.Tensor, to_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]
    ) -> torch.Tensor:
        """Add to each row the offsets of its adapter.

        Args:
            layer: the layer whose input the states are.
            states: (batch, ..., d).
            to_dtype: casts states to the dtype of a generator.

        Returns:
            (batch, ..., d); rows without a prompt at this layer stay the same bit for bit.
        """
        batch = states.shape[0]
        if (layer, batch) not in self._groups:
            at_layer = {name: adapter.generators.get(layer) for name, adapter in self._added.items()}
            rows = [at_layer.get(name) for name in self.names_of(batch)]
            self._groups[layer, batch] = group_rows(rows, states.device)
        tokens = states.reshape(batch, -1, states.shape[-1])
        total = tokens
        for group in self._groups[layer, batch]:
            total = group.add_offsets(total, tokens, to_dtype)
        return total.reshape(states.shape)

    def _with(self, placement: str) -> dict[str, RowAdapter]:
        """The adapters with prompts of this placement."""
        return {name: one for name, one in self.adapters.items() if one.settings.config.placement == placement}

    def _prompts_in_front(self) -> MixedPrompts | None:
        adapters = self._with("prepend")
        if not adapters:
            return None
        # Imported here so that placement="add" never loads what only "prepend" needs.
        from sptune.modeling.prepend.mixed_prompts import AdapterPrompts, MixedPrompts

        prompts = {name: AdapterPrompts(one.settings, one.generators) for name, one in adapters.items()}
        return MixedPrompts(prompts, self.names_of, label=", ".join(self.names))

    def modules_of(self, wrapper: SavedModule, batch: int) -> list[nn.Module]:
        """The module of each row of a batch: its adapter's own copy, or the backbone's."""
        original = wrapper.original_module
        own = {name: adapter.modules.get(wrapper, original) for name, adapter in self.adapters.items()}
        return [own.get(name, original) for name in self.names_of(batch)]


def _checked_names(names: Iterable[str], attachment: Attachment) -> list[str]:
    """The names as a list.

    Raises:
        InputError: one is not that of an adapter, or there is none.
    """
    if isinstance(names, str):
        raise InputError(f"adapter_names={names!r} is one name; give a list with a name for each row of the batch.")
    listed = list(names)
    if not listed:
        raise InputError(f"adapter_names is empty; give each row of the batch a name, {BASE!r} for no adapter.")
    known = list(attachment.settings)
    unknown = [name for name in dict.fromkeys(listed) if name != BASE and name not in known]
    if unknown:
        raise _unknown(unknown, known)
    return listed


def _unknown(names: Iterable[Any], known: Iterable[str]) -> InputError:
    return InputError(
        f"adapter_names: trying to infer with non-existing adapter(s) {', '.join(map(str, names))}; the model has "
        f"{', '.join(known) or 'none'}. Load one with load_adapter, or give {BASE!r} for no adapter."
    )


def _collect(name: str, attachment: Attachment) -> RowAdapter:
    """The weights of an adapter; all of them, or it is not known any more."""
    blocks = attachment.backbone.layers
    try:
        settings = attachment.settings_of(name)
        generators = {layer: _row_generator(blocks[layer], name, settings) for layer in settings.layers}
        copies = {wrapper: wrapper.copy_of(name) for wrapper in tuple(attachment.saved_modules)}
        attachment.settings_of(name)  # deleting an adapter begins at its layers
    except KeyError:
        raise _unknown([name], list(attachment.settings)) from None
    return RowAdapter(settings, generators, {wrapper: copy for wrapper, copy in copies.items() if copy is not None})


def _row_generator(block: nn.Module, name: str, settings: AdapterSettings) -> RowGenerator:
    """What makes an adapter's prompts at a block.

    Raises:
        KeyError: there is nothing: another thread deletes the adapter, or has not loaded all of it.
    """
    if not isinstance(block, SPTLayer):
        raise KeyError(name)
    gate = block.spt_gate[name] if settings.config.searching else None
    return RowGenerator(block.spt_generator[name], gate, settings.config)
