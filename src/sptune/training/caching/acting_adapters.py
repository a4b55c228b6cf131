"""Which adapters act in a forward, so that cached states are read and kept only where the same ones act."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from sptune.modeling.layer import SPTLayer


class ActingAdapters:
    """Tells whether the adapters that act in a model are still those that acted at first, and acted alike.

    Args:
        model: the model, with adapters of PEFT or of transformers, or without any.
    """

    def __init__(self, model: nn.Module) -> None:
        # Found once, since it takes a millisecond.
        self._layers = [one for one in model.modules() if isinstance(one, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self._first = [_acting(layer) for layer in self._layers]

    def are_the_first(self) -> bool:
        """Whether no adapter has been activated, disabled, merged or scaled, and no row of the batch has its own."""
        if any(_has_mixed_batch(layer) for layer in self._layers):
            return False
        return all(_acting(layer) == first for layer, first in zip(self._layers, self._first, strict=True))


def _acting(layer: BaseTunerLayer | AuxiliaryTrainingWrapper) -> tuple[Any, ...]:
    """The adapters that act in a layer, those merged into its weight, and their scales."""
    scaling = getattr(layer, "scaling", None)
    # Scales that are no numbers are trained weights.
    scales = {name: one for name, one in scaling.items() if isinstance(one, float)} if isinstance(scaling, dict) else {}
    return () if layer.disable_adapters else (*layer.active_adapters,), (*layer.merged_adapters,), scales


def _has_mixed_batch(layer: nn.Module) -> bool:
    """Whether the rows of the current batch have adapters of their own, by PEFT's `adapter_names`."""
    if isinstance(layer, SPTLayer) and layer.attachment.context.mixed_batch is not None:
        return True
    # PEFT's methods pass the names on to each layer by a hook, of which they are an argument.
    hooks = (layer._forward_pre_hooks[key] for key in layer._forward_pre_hooks_with_kwargs)
    return any("adapter_names" in getattr(hook, "keywords", ()) for hook in hooks)
