"""How a gated layer mixes prompts of two layers, and the bias of attention logits by their inclusion probability.

See method section 3.
"""

from __future__ import annotations

import torch


def mixing_weights(
    a: torch.Tensor, v_below: torch.Tensor, tau: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weights of the propagated and the new prompt at a gated layer, and the inclusion probability above it.

    v = v_below + a (1 - v_below), w_prop = v_below (1 - tau a), w_new = a (tau v_below + 1 - v_below), and
    w_prop + w_new = v: the prompt of the layer is (w_prop P_prop + w_new P_new) / v.

    Args:
        a: the layer's gate values, any shape.
        v_below: probability that a prompt was inserted below, the same shape or one that broadcasts.
        tau: interpolation weight between the new and the propagated prompt, in (0, 1].

    Returns:
        w_prop, w_new, v.
    """
    v = v_below + a * (1 - v_below)
    return v_below * (1 - tau * a), a * (tau * v_below + 1 - v_below), v


def mix_prompts(
    propagated: torch.Tensor, new: torch.Tensor, a: torch.Tensor, v_below: torch.Tensor, tau: float
) -> torch.Tensor:
    """P = (w_prop P_prop + w_new P_new) / v; zero where v = 0, since nothing attends to the prompt there.

    Args:
        propagated: the prompts from the layer below, (batch, m, d).
        new: the generator's prompts, (batch, m, d).
        a: gate values, (1,) or (batch,).
        v_below: inclusion probability below, (1,) or (batch,).
        tau: interpolation weight between the new and the propagated prompt.

    Returns:
        (batch, m, d).
    """
    w_prop, w_new, v = mixing_weights(a, v_below, tau)
    # Where v = 0 both weights are 0 and any divisor does; 1 keeps the gradients finite.
    divisor = torch.where(v > 0, v, torch.ones_like(v))
    keep, renew = (weight[:, None, None].to(new.dtype) for weight in (w_prop / divisor, w_new / divisor))
    return keep * propagated + renew * new


def mix_visible_prompts(
    propagated: torch.Tensor, new: torch.Tensor, a: torch.Tensor | None, tau: float
) -> torch.Tensor:
    """P = (1 - tau a) P_prop + tau a P_new, for prompts that are always visible.

    Args:
        propagated: the prompts from the layer below, (batch, m, d).
        new: the generator's prompts, (batch, m, d).
        a: gate values, (1,) or (batch,); None for 1.
        tau: interpolation weight between the new and the propagated prompt.

    Returns:
        (batch, m, d).
    """
    share = tau if a is None else (tau * a)[:, None, None].to(new.dtype)
    return (1 - share) * propagated + share * new


def inclusion_bias(v: torch.Tensor) -> torch.Tensor:
    """The bias log v on every attention logit of a prompt token; the lowest finite number where v = 0.

    A finite bound keeps rows that see nothing but absent prompts free of NaN, and its softmax weight is 0 all the same.

    Args:
        v: inclusion probabilities, any shape.
    """
    return torch.log(v.clamp_min(torch.finfo(v.dtype).tiny)).masked_fill(v <= 0, torch.finfo(v.dtype).min)
