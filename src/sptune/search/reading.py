"""Ways to read a trained search network: by its gates, or by what the held-out half of the data loses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sized
from functools import partial
from typing import cast

import torch

from sptune.search.trainer import SearchTrainer

# What it costs to look at all sets must stay below what their training cost.
MOST_SETS = 70
PARTS = 3

Reading = tuple[list[float], list[int] | None]


def by_gates(trainer: SearchTrainer) -> Reading:
    """A layer's score is its gate."""
    return trainer.gates() or [], None


def perturbation(trainer: SearchTrainer) -> Reading:
    """A layer's score is what the held-out loss rises by when its gate is closed; without gates, all are open first."""
    gates, count = trainer.gates(), len(trainer.tuner.candidate_layers)
    values = torch.ones(1, count) if gates is None else torch.tensor(gates)[None]
    closed = [values * (1 - torch.eye(count)[place]) for place in range(count)]
    before, *losses = trainer.held_out_losses([partial(trainer.tuner.gating, one) for one in (values, *closed)])
    return [loss - before for loss in losses], None


def sets(trainer: SearchTrainer) -> Reading:
    """The discrete network with the lowest held-out loss, of all with as many layers as are wanted, by a race.

    All sets run on a first part of the held-out data, the better half of them also on a second, and so on; what counts
    is the mean of all parts that a set has run on. With more than `MOST_SETS` sets, one is built greedily. A layer's
    score is minus the mean loss on the first part of the sets with that layer.
    """
    candidates, size = trainer.tuner.candidate_layers, trainer.search.num_prompt_layers or 1
    if math.comb(len(candidates), size) > MOST_SETS:
        return greedy(trainer)
    every = list(itertools.combinations(candidates, size))
    parts = min(PARTS, len(cast(Sized, trainer.gate_dataset)))
    totals = dict.fromkeys(every, 0.0)
    running, scores = every, list[float]()
    for part in range(parts):
        settings = [partial(trainer.tuner.prompting_at, layers) for layers in running]
        for layers, loss in zip(running, trainer.held_out_losses(settings, part, parts), strict=True):
            totals[layers] += loss
        if not scores:
            by_layer = [[loss for layers, loss in totals.items() if one in layers] for one in candidates]
            scores = [-sum(losses) / len(losses) for losses in by_layer]
        running = sorted(running, key=lambda layers: totals[layers])
        if part + 1 < parts:
            running = running[: math.ceil(len(running) / 2)]
    return scores, list(running[0])


def greedy(trainer: SearchTrainer) -> Reading:
    """Layers are added one by one, each time the one that leaves the lowest held-out loss of the discrete network.

    A layer's score is minus the held-out loss of the network with that layer alone.
    """
    candidates = trainer.tuner.candidate_layers
    scores: list[float] = []
    chosen: list[int] = []
    for _ in range(trainer.search.num_prompt_layers or 1):
        left = [layer for layer in candidates if layer not in chosen]
        losses = trainer.held_out_losses([partial(trainer.tuner.prompting_at, [*chosen, layer]) for layer in left])
        scores = scores or [-loss for loss in losses]
        # Between equal losses the higher layer: it is the cheaper one to train.
        chosen.append(min(zip(losses, (-layer for layer in left), left, strict=True))[-1])
    return scores, sorted(chosen)


READINGS: dict[str, Callable[[SearchTrainer], Reading]] = {
    "gates": by_gates,
    "perturbation": perturbation,
    "sets": sets,
    "greedy": greedy,
}
