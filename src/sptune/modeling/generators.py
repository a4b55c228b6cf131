"""Generators of the offsets that `placement="add"` adds to the tokens (method section 8).

Each makes a vector for every token from that token's own hidden state. The `phm` projection follows Zhang et al.
(2021), "Beyond Fully-Connected Layers with Quaternions".

To add a generator: write a module here whose `forward(hidden_states)` takes and returns (..., d), let `build_generator`
build it, and list its name in `GENERATORS` of `sptune.prompt_config`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.activations import ACT2FN

if TYPE_CHECKING:
    from sptune.config import SPTConfig


class PHMLinear(nn.Module):
    """A linear layer whose weight is W = sum_j kron(A_j, B_j), with about 1/n of the parameters.

    The product is taken factor by factor; W itself is built only by `weight()`.

    Args:
        in_features: size of the input; divisible by `phm_dim`.
        out_features: size of the output; divisible by `phm_dim`.
        phm_dim: n, the number of Kronecker terms and the side of each A_j.
        std: initial standard deviation of the entries of W.

    Raises:
        ValueError: `phm_dim` does not divide a feature size.
    """

    def __init__(self, in_features: int, out_features: int, phm_dim: int, std: float) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size % phm_dim:
                raise ValueError(f"PHMLinear: phm_dim={phm_dim} does not divide {name}={size}; choose a divisor.")
        self.in_features, self.out_features, self.phm_dim = in_features, out_features, phm_dim
        self.A = nn.Parameter(torch.empty(phm_dim, phm_dim, phm_dim))
        self.B = nn.Parameter(torch.empty(phm_dim, in_features // phm_dim, out_features // phm_dim))
        self.bias = nn.Parameter(torch.zeros(out_features))
        # Var(W) = n Var(A) Var(B); with Var(A) = 1/n that is Var(B).
        nn.init.normal_(self.A, std=1.0 / math.sqrt(phm_dim))
        nn.init.normal_(self.B, std=std)

    def weight(self) -> torch.Tensor:
        """The explicit weight W = sum_j kron(A_j, B_j), shape (in_features, out_features)."""
        return torch.stack([torch.kron(a, b) for a, b in zip(self.A, self.B, strict=True)]).sum(0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Map states (..., in_features) to (..., out_features)."""
        n = self.phm_dim
        blocks = states.reshape(*states.shape[:-1], n, self.in_features // n)
        # First B, as one matrix product over all j side by side, then the small mixing by A.
        stacked = self.B.permute(1, 0, 2).reshape(self.in_features // n, self.out_features)
        projected = (blocks @ stacked).reshape(*states.shape[:-1], n, n, self.out_features // n)
        mixed = torch.einsum("...ijo,jik->...ko", projected, self.A.to(projected.dtype))
        out = mixed.reshape(*states.shape[:-1], self.out_features)
        return out + self.bias


class BottleneckOffset(nn.Module):
    """G(h) = W_up sigma(W_down h + b_down) + b_up, token by token, initially zero (method section 8).

    Args:
        config: width of the bottleneck, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.down = build_projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = build_projection(config, config.bottleneck_dim, hidden_size, std=0.0 if config.init_weights else None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the offset of each token, (..., d), from hidden_states (..., d)."""
        return self.up(self.activation(self.down(hidden_states)))


class StaticOffset(nn.Module):
    """G(h) = b, one learned vector for all tokens, initially zero (method section 8).

    Args:
        config: with `init_weights=False` the vector is drawn at random.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(hidden_size))
        if not config.init_weights:
            nn.init.normal_(self.offset)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the offset (d,) of every token, independent of hidden_states (..., d)."""
        return self.offset


def build_generator(config: SPTConfig, hidden_size: int) -> nn.Module:
    """Build the generator that the configuration names.

    Args:
        config: the adapter's configuration.
        hidden_size: d of the backbone.

    Returns:
        For `add`, a module whose `forward(hidden_states)` takes (..., d) and returns the offsets to add. For `prepend`,
        see `sptune.modeling.prepend.prompt_generators`.

    Raises:
        ValueError: `phm_dim` does not divide the hidden size or the bottleneck.
    """
    if config.placement == "prepend":
        # Imported here so that placement="add" never loads what only "prepend" needs.
        from sptune.modeling.prepend.prompt_generators import build_prompt_generator

        return build_prompt_generator(config, hidden_size)
    return StaticOffset(config, hidden_size) if config.generator == "static" else BottleneckOffset(config, hidden_size)


def build_projection(config: SPTConfig, in_features: int, out_features: int, std: float | None = None) -> nn.Module:
    """A linear or PHM layer from `in_features` to `out_features`, with a bias of zeros.

    Args:
        config: says which kind.
        in_features: size of the input.
        out_features: size of the output.
        std: initial standard deviation of the weight W, the same for both kinds; None for 1 / sqrt(in_features).
    """
    std = 1.0 / math.sqrt(in_features) if std is None else std
    if config.projection == "phm":
        return PHMLinear(in_features, out_features, config.phm_dim, std)
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
