"""Prompt generators: what makes the prompts of a layer.

Of `placement="add"` (method section 8) one makes a vector for each token from that token's own state. Of
`placement="prepend"` (section 2) one reads the text hidden states at the input of its layer, restricted to the source
tokens, and returns m vectors of the hidden size. `appg`, `mppg` and `npg` follow Late Prompt Tuning (Liu et al., 2022);
the `phm` projection follows Zhang et al. (2021), "Beyond Fully-Connected Layers with Quaternions".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers.activations import ACT2FN

if TYPE_CHECKING:
    from sptune.config import SPTConfig

INITIAL_STD = 0.02
INSTANCE_AWARE = ("npg", "appg", "mppg", "attention")
PLACEMENTS = ("add", "prepend")
# By placement, the default first.
GENERATORS: dict[str, tuple[str, ...]] = {
    "add": ("bottleneck", "static"),
    "prepend": ("appg", "mppg", "npg", "attention", "static"),
}


class PHMLinear(nn.Module):
    """A linear layer whose weight is W = sum_j kron(A_j, B_j), with about 1/n of the parameters.

    The product is taken factor by factor; W itself is built only by `weight()`.

    Args:
        in_features: size of the input; divisible by `phm_dim`.
        out_features: size of the output; divisible by `phm_dim`.
        phm_dim: n, the number of Kronecker terms and the side of each A_j.
        std: standard deviation of W's entries at first.

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


def adaptive_pool(
    states: torch.Tensor, mask: torch.Tensor, slots: int, kind: Literal["average", "max"] = "average"
) -> torch.Tensor:
    """Adaptive pooling of each example's masked tokens to a fixed number of slots, without a loop over examples.

    Slot j of an example with n masked-in tokens covers the tokens floor(j n / m) <= t < ceil((j + 1) n / m) in the
    order in which they stand, as `nn.AdaptiveAvgPool1d` and `nn.AdaptiveMaxPool1d` do on the example alone.
    Examples with n < m repeat tokens; examples with no token give zeros (the caller sees to it that there are none).

    Args:
        states: (batch, length, features).
        mask: (batch, length), true for the tokens to pool.
        slots: m.
        kind: "average" or "max".

    Returns:
        (batch, m, features).
    """
    mask = mask.to(torch.bool)
    count = mask.sum(-1)[:, None]  # (batch, 1)
    index = mask.cumsum(-1) - 1  # (batch, length): the token's number among the masked-in ones
    slot = torch.arange(slots, device=states.device)[None]  # (1, m)
    start = torch.div(slot * count, slots, rounding_mode="floor")[..., None]
    end = torch.div((slot + 1) * count + slots - 1, slots, rounding_mode="floor")[..., None]
    covers = (index[:, None] >= start) & (index[:, None] < end) & mask[:, None]  # (batch, m, length)
    if kind == "average":
        weights = covers.to(states.dtype)
        return (weights / weights.sum(-1, keepdim=True).clamp_min(1)) @ states
    empty = ~mask.any(-1)[:, None, None]
    lowest = torch.finfo(states.dtype).min
    with torch.no_grad():
        # One slot at a time keeps the memory at (batch, length, features); m is about ten.
        places = [states.masked_fill(~covers[:, j, :, None], lowest).argmax(1) for j in range(slots)]
    return states.gather(1, torch.stack(places, dim=1)).masked_fill(empty, 0.0)


class BottleneckOffset(nn.Module):
    """G(h) = W_up sigma(W_down h + b_down) + b_up, token by token; zero at first (method section 8).

    Args:
        config: width of the bottleneck, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.down = _projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = _projection(config, config.bottleneck_dim, hidden_size, std=0.0 if config.init_weights else None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the offset of each token, (..., d), from hidden_states (..., d)."""
        return self.up(self.activation(self.down(hidden_states)))


class StaticOffset(nn.Module):
    """G(h) = b, one learned vector for all tokens; zero at first (method section 8).

    Args:
        config: whether the vector is zero at first.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(hidden_size))
        if not config.init_weights:
            nn.init.normal_(self.offset)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the offset (d,) of every token, whatever hidden_states (..., d) are."""
        return self.offset


class StaticGenerator(nn.Module):
    """m learned vectors, the same for every input.

    Args:
        num_virtual_tokens: m.
        hidden_size: d.
    """

    def __init__(self, num_virtual_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(num_virtual_tokens, hidden_size))
        nn.init.normal_(self.prompt, std=INITIAL_STD)

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return the prompt (batch, m, d) for hidden_states (batch, length, d), whose values play no part."""
        return self.prompt.expand(hidden_states.shape[0], -1, -1)


class PooledGenerator(nn.Module):
    """`appg` and `mppg`: down-projection of every source token, adaptive pooling to m slots, activation, up-projection.

    Late Prompt Tuning (Liu et al., 2022). With `residual` that is added to the pooled states, and is zero at first.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
        kind: "average" (appg) or "max" (mppg).
    """

    def __init__(self, config: SPTConfig, hidden_size: int, kind: Literal["average", "max"]) -> None:
        super().__init__()
        self.slots, self.kind = _tokens(config), kind
        self.down = _projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = _up_projection(config, hidden_size)
        self.residual = bool(config.residual)

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return prompts (batch, m, d) from hidden_states (batch, length, d) and source_mask (batch, length)."""
        pooled = adaptive_pool(self.down(hidden_states), source_mask, self.slots, self.kind)
        change = self.up(self.activation(pooled))
        return adaptive_pool(hidden_states, source_mask, self.slots, self.kind) + change if self.residual else change


class TokenGenerator(nn.Module):
    """`npg`: one token's vector through a bottleneck to all m prompts at once.

    The token is the first source token in an encoder and the last in a causal model, where only the last has seen
    the whole source.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.slots = _tokens(config)
        self.down = _projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = _never_zero(_projection(config, config.bottleneck_dim, self.slots * hidden_size))

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return prompts (batch, m, d) from hidden_states (batch, length, d) and source_mask (batch, length)."""
        length = hidden_states.shape[1]
        position = torch.arange(length, device=hidden_states.device)
        if causal:
            index = torch.where(source_mask, position, -1).amax(-1).clamp_min(0)
        else:
            index = torch.where(source_mask, position, length).amin(-1).clamp_max(length - 1)
        token = hidden_states[torch.arange(hidden_states.shape[0], device=index.device), index]
        token = token * source_mask.any(-1, keepdim=True).to(token.dtype)
        return self.up(self.activation(self.down(token))).unflatten(-1, (self.slots, -1))


class AttentionGenerator(nn.Module):
    """`attention`: m learned queries attend over the down-projected source tokens; activation; up-projection.

    With `residual` that is added to the states themselves, weighed by the same attention, and is zero at first.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.down = _projection(config, hidden_size, config.bottleneck_dim)
        self.queries = nn.Parameter(torch.empty(_tokens(config), config.bottleneck_dim))
        nn.init.normal_(self.queries, std=1.0)
        self.activation = ACT2FN[config.activation]
        self.up = _up_projection(config, hidden_size)
        self.residual = bool(config.residual)

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return prompts (batch, m, d) from hidden_states (batch, length, d) and source_mask (batch, length)."""
        source = self.down(hidden_states)
        scores = torch.einsum("mr,btr->bmt", self.queries, source) / math.sqrt(source.shape[-1])
        scores = scores.masked_fill(~source_mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * source_mask.any(-1)[:, None, None].to(scores.dtype)
        change = self.up(self.activation(weights @ source))
        return weights @ hidden_states + change if self.residual else change


def build_generator(config: SPTConfig, hidden_size: int) -> nn.Module:
    """Build the generator that the configuration names.

    Args:
        config: an `SPTConfig`.
        hidden_size: d of the backbone.

    Returns:
        For `add`, a module whose `forward(hidden_states)` takes (..., d) and gives the offsets to add. For `prepend`,
        one whose `forward(hidden_states, source_mask, *, causal)` takes (batch, length, d) and (batch, length) and
        gives (batch, m, d).

    Raises:
        ValueError: `phm_dim` does not divide the hidden size or the bottleneck.
    """
    if config.placement == "add":
        return (
            StaticOffset(config, hidden_size) if config.generator == "static" else BottleneckOffset(config, hidden_size)
        )
    if config.generator == "static":
        return StaticGenerator(_tokens(config), hidden_size)
    if config.generator == "npg":
        return TokenGenerator(config, hidden_size)
    if config.generator == "attention":
        return AttentionGenerator(config, hidden_size)
    return PooledGenerator(config, hidden_size, "average" if config.generator == "appg" else "max")


def _tokens(config: SPTConfig) -> int:
    """The m of a configuration, which `prepend` always has."""
    assert config.num_virtual_tokens is not None
    return config.num_virtual_tokens


def _up_projection(config: SPTConfig, hidden_size: int) -> nn.Module:
    """From the bottleneck to d; zero at first where the result is a change of something."""
    if config.residual and config.init_weights:
        return _projection(config, config.bottleneck_dim, hidden_size, std=0.0)
    return _never_zero(_projection(config, config.bottleneck_dim, hidden_size))


def _never_zero(up: Any) -> nn.Module:
    """Draw the bias: where no unit of the bottleneck is active, a prompt of zeros would stand before a norm."""
    nn.init.normal_(up.bias, std=INITIAL_STD)
    return up


def _projection(config: SPTConfig, in_features: int, out_features: int, std: float | None = None) -> nn.Module:
    # The same spread of W and zero bias for both kinds of projection, so that their first prompts are as large.
    std = 1.0 / math.sqrt(in_features) if std is None else std
    if config.projection == "phm":
        return PHMLinear(in_features, out_features, config.phm_dim, std)
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
