"""Refusing generators of impossible sizes before memory is taken for them.

An adapter's configuration may come from anyone, and PEFT makes the generators before it looks at the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sptune.errors import InputError
from sptune.modeling.generators import build_generator

if TYPE_CHECKING:
    from sptune.config import SPTConfig
    from sptune.modeling.backbones import Backbone

# An adapter of up to 1 GiB in float32 is small enough for any backbone.
SMALL_ADAPTER = 2**28


def check_generators(config: SPTConfig, layers: list[int], backbone: Backbone, model: nn.Module) -> None:
    """Refuse sizes of generators that do not fit the backbone.

    Args:
        config: the adapter's configuration.
        layers: the layers that get a generator.
        backbone: the blocks.
        model: all of the frozen model.

    Raises:
        InputError: the PHM projection does not fit, there are more prompt vectors than positions, or the generators
            would have more weights than the backbone.
    """
    if config.projection == "phm" and backbone.hidden_size % config.phm_dim:
        raise InputError(
            f"phm_dim={config.phm_dim} does not divide the backbone's hidden size {backbone.hidden_size}; choose a "
            "divisor."
        )
    settings: Any = getattr(backbone.base_model, "config", None)
    positions = getattr(settings, "max_position_embeddings", None)
    if isinstance(positions, int) and (config.num_virtual_tokens or 0) > positions > 0:
        raise InputError(
            f"num_virtual_tokens={config.num_virtual_tokens} is more than the {positions} tokens that the backbone "
            "takes; lower it."
        )
    with torch.device("meta"):  # takes no memory
        generator = build_generator(config, backbone.hidden_size)
    check_adapter_size(
        len(layers) * sum(weight.numel() for weight in generator.parameters()),
        model,
        f"with bottleneck_dim={config.bottleneck_dim}"
        + (f" and num_virtual_tokens={config.num_virtual_tokens}" if config.num_virtual_tokens else ""),
    )


def check_adapter_size(weights: int, model: nn.Module, made: str) -> None:
    """Refuse an adapter with more weights than its backbone, if it is not small anyway.

    Args:
        weights: the number of weights.
        model: the backbone, with its head.
        made: where the number comes from, for the message.

    Raises:
        InputError: it is too large.
    """
    frozen = sum(weight.numel() for name, weight in model.named_parameters() if ".spt_" not in name)
    if weights > max(frozen, SMALL_ADAPTER):
        raise InputError(
            f"The adapter would have {weights:,} weights {made}, more than the backbone, which has {frozen:,}; check "
            "the configuration."
        )
