"""The frozen part of a backbone below its first trained layer: its dtype, and training without its dropout."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator

import torch
from torch import nn

from sptune.modeling.backbones import Backbone, DropoutRates, restore_dropout, turn_off_dropout
from sptune.modeling.calls import WrappedMethod


def first_trained_layer(backbone: Backbone) -> int | None:
    """The lowest block with a trained weight; None if no block has one."""
    for index, block in enumerate(backbone.layers):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return index
    return None


def dtype_below(backbone: Backbone, layer: int) -> torch.dtype:
    """The dtype of the states at a layer: the widest one below it, not counting quantized weights."""
    above = {id(parameter) for block in backbone.layers[layer:] for parameter in block.parameters()}
    below = {one.dtype for one in backbone.base_model.parameters() if id(one) not in above}
    floating = [dtype for dtype in below if dtype.is_floating_point and dtype.itemsize > 1]
    return functools.reduce(torch.promote_types, floating or [torch.float32])


@contextlib.contextmanager
def without_dropout_below(backbone: Backbone, layer: int) -> Iterator[None]:
    """For the training inside, turn dropout off in the frozen parts below a layer.

    With dropout their states would differ from epoch to epoch, and training must not depend on the activation cache.
    """
    base_model, above = backbone.base_model, backbone.layers[layer:]
    frozen = [one for one in _frozen_parts(base_model, {*above}) if "train" not in vars(one)]

    def set_mode(method: WrappedMethod, mode: bool = True) -> nn.Module:
        method.method(mode)
        rates.extend(turn_off_dropout(frozen))
        return base_model

    rates: DropoutRates = []
    wrapped = WrappedMethod(base_model, "train", set_mode)
    try:
        yield
    finally:
        wrapped.remove()
        restore_dropout(rates)


def _frozen_parts(module: nn.Module, above: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The modules of a model, itself included, except for the blocks `above` and other trained parts."""
    if module in above:
        return
    if any(block in above for block in module.modules()):
        yield module
        for child in module.children():
            yield from _frozen_parts(child, above)
    elif not any(parameter.requires_grad for parameter in module.parameters()):
        yield from module.modules()
