"""A hash of everything that cached states depend on, so that a file on disk is used for the same states only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import nn

from sptune.training.caching.token_table import TokenTable


def fingerprint(
    base_model: nn.Module, first_layer: int, table: TokenTable, layers: nn.ModuleList, precision: str = "no"
) -> str:
    """A hash of everything the states at a layer depend on: frozen weights, configuration, tokens and the layer.

    Tokens stand for text, tokenizer and length limit. Weights of the blocks from `first_layer` on do not count.

    Args:
        base_model: whose forward runs the blocks.
        first_layer: the layer.
        table: the examples' tokens.
        layers: the blocks.
        precision: of autocast.
    """
    digest = hashlib.blake2b(digest_size=32)
    config: Any = base_model.config
    implementation = getattr(config, "_attn_implementation", None)
    about = (first_layer, config.to_json_string(), implementation, precision, transformers.__version__)
    digest.update(repr(about).encode())
    above = {id(parameter) for layer in layers[first_layer:] for parameter in layer.parameters()}
    for name, parameter in base_model.named_parameters():
        if id(parameter) not in above and not parameter.requires_grad:
            digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode())
            for part in _parts(parameter.detach()):
                digest.update(as_bytes(part.cpu()))
    for tensor in (table.tokens, table.lengths, table.types):
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or the codes and scales of a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in cast(Any, tensor).__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU."""
    array: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)
