"""The parts of SPT-DARTS (method section 4): two halves of the data, layer masks, consistency, gate gradient."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from sptune.gates import at_least_float32


def split_halves(
    labels: Sequence[int] | None, size: int, *, gate_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Example indices of the weight half and of the gate half, each in ascending order, the same for the same seed.

    Args:
        labels: class of each example, to split within each class; None to split without.
        size: number of examples, at least 2.
        gate_fraction: share of the gate half.
        seed: what the choice depends on.

    Returns:
        Two lists, neither empty, that together hold every index once. Each class has its share in the gate half, give
        or take one example; a class with a single example stays in the weight half while other classes can fill up
        the gate half.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index in range(size):
        by_class[0 if labels is None else int(labels[index])].append(index)
    shuffler = random.Random(seed)
    members = [by_class[label] for label in sorted(by_class)]
    for indices in members:
        shuffler.shuffle(indices)

    counts = [math.floor(len(indices) * gate_fraction) for indices in members]
    wanted = min(max(round(size * gate_fraction), 1), size - 1)
    by_remainder = sorted(
        range(len(members)),
        key=lambda c: (len(members[c]) > 1, len(members[c]) * gate_fraction - counts[c]),
        reverse=True,
    )
    for c in by_remainder[: max(wanted - sum(counts), 0)]:
        counts[c] += 1
    gate_half = sorted(index for indices, count in zip(members, counts, strict=True) for index in indices[:count])
    chosen = set(gate_half)
    return [index for index in range(size) if index not in chosen], gate_half


def draw_layer_masks(
    size: int, candidates: int, mask_probability: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Independent Bernoulli layer masks, (size, candidates): 0 with probability p_c, else 1."""
    return (torch.rand(size, candidates, generator=generator) >= mask_probability).float()


def symmetric_kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(KL(p || q) + KL(q || p)) / 2 with p, q = softmax of the scores, averaged over all but the last dimension.

    Args:
        first: scores of the first run, (..., classes).
        second: scores of the second run, the same shape.
    """
    log_p, log_q = (F.log_softmax(at_least_float32(run), dim=-1) for run in (first, second))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2


def states_distance(first: torch.Tensor, second: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean squared difference of two runs' final states over the real tokens of each example, averaged over examples.

    Args:
        first: final states of the first run, (batch, length, hidden).
        second: those of the second run, the same shape.
        mask: (batch, length), nonzero at real tokens; None if all are.
    """
    distance = (at_least_float32(first) - at_least_float32(second)).pow(2).mean(-1)
    if mask is None:
        return distance.mean()
    real = mask.to(distance.dtype)
    return ((distance * real).sum(-1) / real.sum(-1).clamp_min(1)).mean()


def mixed_level_gradient(
    gate_half: torch.Tensor | None, weight_half: torch.Tensor | None, mixed_level_weight: float
) -> torch.Tensor | None:
    """g_alpha = grad_alpha L_gate + lambda_m grad_alpha L_weight; None stands for no gradient at all."""
    if weight_half is None or mixed_level_weight == 0:
        return gate_half
    weighted = mixed_level_weight * weight_half
    return weighted if gate_half is None else gate_half + weighted
