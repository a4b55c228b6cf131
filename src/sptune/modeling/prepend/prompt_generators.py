"""Generators of the prompts that `placement="prepend"` puts in front of the text (method section 2).

Each reads the text's hidden states at the input of its layer, restricted to the source tokens, and returns m vectors of
the hidden size. `appg`, `mppg` and `npg` follow Late Prompt Tuning (Liu et al., 2022).

To add a generator: write a module here, let `build_prompt_generator` build it, and list its name in `GENERATORS` of
`sptune.prompt_config`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers.activations import ACT2FN

from sptune.modeling.generators import build_projection

if TYPE_CHECKING:
    from sptune.config import SPTConfig

INITIAL_STD = 0.02
# The generators that read the text; the others make the same prompts for every input.
INSTANCE_AWARE = ("npg", "appg", "mppg", "attention")


def build_prompt_generator(config: SPTConfig, hidden_size: int) -> nn.Module:
    """Build the generator that a configuration with `placement="prepend"` names.

    Args:
        config: the adapter's configuration.
        hidden_size: d of the backbone.

    Returns:
        A module whose `forward(hidden_states, source_mask, *, causal)` takes (batch, length, d) and (batch, length) and
        returns (batch, m, d).

    Raises:
        ValueError: `phm_dim` does not divide the hidden size or the bottleneck.
    """
    if config.generator == "static":
        return StaticGenerator(_num_prompts(config), hidden_size)
    if config.generator == "npg":
        return TokenGenerator(config, hidden_size)
    if config.generator == "attention":
        return AttentionGenerator(config, hidden_size)
    return PooledGenerator(config, hidden_size, "average" if config.generator == "appg" else "max")


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
        """Return the prompts (batch, m, d), the same for every row of hidden_states (batch, length, d)."""
        return self.prompt.expand(hidden_states.shape[0], -1, -1)


class PooledGenerator(nn.Module):
    """`appg` and `mppg`: down-projection of every token, adaptive pooling to m vectors, activation, up-projection.

    With `residual` the result is added to the pooled states, and is initially zero.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
        kind: "average" (appg) or "max" (mppg).
    """

    def __init__(self, config: SPTConfig, hidden_size: int, kind: Literal["average", "max"]) -> None:
        super().__init__()
        self.num_prompts, self.kind = _num_prompts(config), kind
        self.down = build_projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = _up_projection(config, hidden_size)
        self.residual = bool(config.residual)

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return prompts (batch, m, d) from hidden_states (batch, length, d) and source_mask (batch, length)."""

        def pool(states: torch.Tensor) -> torch.Tensor:
            return adaptive_pool(states, source_mask, self.num_prompts, self.kind)

        change = self.up(self.activation(pool(self.down(hidden_states))))
        return pool(hidden_states) + change if self.residual else change


class TokenGenerator(nn.Module):
    """`npg`: the state of one source token, through a bottleneck, to all m prompts at once.

    It is the first source token in an encoder and the last in a causal model, where only the last has attended to all.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.num_prompts = _num_prompts(config)
        self.down = build_projection(config, hidden_size, config.bottleneck_dim)
        self.activation = ACT2FN[config.activation]
        self.up = _never_zero(build_projection(config, config.bottleneck_dim, self.num_prompts * hidden_size))

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
        return self.up(self.activation(self.down(token))).unflatten(-1, (self.num_prompts, -1))


class AttentionGenerator(nn.Module):
    """`attention`: m learned queries attend over the down-projected source tokens; activation; up-projection.

    With `residual` the result is added to the states, pooled by the same attention, and is initially zero.

    Args:
        config: sizes, projection and activation.
        hidden_size: d.
    """

    def __init__(self, config: SPTConfig, hidden_size: int) -> None:
        super().__init__()
        self.down = build_projection(config, hidden_size, config.bottleneck_dim)
        self.queries = nn.Parameter(torch.empty(_num_prompts(config), config.bottleneck_dim))
        nn.init.normal_(self.queries, std=1.0)
        self.activation = ACT2FN[config.activation]
        self.up = _up_projection(config, hidden_size)
        self.residual = bool(config.residual)

    def forward(self, hidden_states: torch.Tensor, source_mask: torch.Tensor, *, causal: bool = False) -> torch.Tensor:
        """Return prompts (batch, m, d) from hidden_states (batch, length, d) and source_mask (batch, length)."""
        source = self.down(hidden_states)
        scores = (source @ self.queries.mT).mT / math.sqrt(source.shape[-1])
        scores = scores.masked_fill(~source_mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * source_mask.any(-1)[:, None, None].to(scores.dtype)
        change = self.up(self.activation(weights @ source))
        return weights @ hidden_states + change if self.residual else change


def adaptive_pool(
    states: torch.Tensor, mask: torch.Tensor, num_prompts: int, kind: Literal["average", "max"] = "average"
) -> torch.Tensor:
    """Adaptive pooling of each example's selected tokens to m vectors, without a loop over examples.

    Vector j of an example with n selected tokens pools the tokens floor(j n / m) <= t < ceil((j + 1) n / m) of them, as
    `nn.AdaptiveAvgPool1d` and `nn.AdaptiveMaxPool1d` do on the example alone. With n < m, tokens are repeated. With
    n = 0, the result is zero.

    Args:
        states: (batch, length, features).
        mask: (batch, length), true for the tokens to pool.
        num_prompts: m.
        kind: "average" or "max".

    Returns:
        (batch, m, features).
    """
    mask = mask.to(torch.bool)
    count = mask.sum(-1)[:, None]  # (batch, 1)
    index = mask.cumsum(-1) - 1  # (batch, length): the number of the token among the selected ones
    vector = torch.arange(num_prompts, device=states.device)[None]  # (1, m)
    start = torch.div(vector * count, num_prompts, rounding_mode="floor")[..., None]
    end = torch.div((vector + 1) * count + num_prompts - 1, num_prompts, rounding_mode="floor")[..., None]
    covers = (index[:, None] >= start) & (index[:, None] < end) & mask[:, None]  # (batch, m, length)
    if kind == "average":
        weights = covers.to(states.dtype)
        return (weights / weights.sum(-1, keepdim=True).clamp_min(1)) @ states
    empty = ~mask.any(-1)[:, None, None]
    lowest = torch.finfo(states.dtype).min
    with torch.no_grad():
        # One vector at a time keeps the memory at (batch, length, features); m is about ten.
        places = [states.masked_fill(~covers[:, j, :, None], lowest).argmax(1) for j in range(num_prompts)]
    return states.gather(1, torch.stack(places, dim=1)).masked_fill(empty, 0.0)


def _num_prompts(config: SPTConfig) -> int:
    """m, which a configuration with `placement="prepend"` always has."""
    assert config.num_virtual_tokens is not None
    return config.num_virtual_tokens


def _up_projection(config: SPTConfig, hidden_size: int) -> nn.Module:
    """The projection r -> d; initially zero where its result is added to the pooled states."""
    if config.residual and config.init_weights:
        return build_projection(config, config.bottleneck_dim, hidden_size, std=0.0)
    return _never_zero(build_projection(config, config.bottleneck_dim, hidden_size))


def _never_zero(up: Any) -> nn.Module:
    """Draw the bias at random: if no unit of the bottleneck is active, a norm would otherwise get a prompt of zeros."""
    nn.init.normal_(up.bias, std=INITIAL_STD)
    return up
