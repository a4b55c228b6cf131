"""Ways to read a trained search network: by its gates, or by what the held-out half of the data loses."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import cast

import torch

from sptune.search.layer_selection import LayerSet, evenly_spaced
from sptune.search.supernet_trainer import SearchTrainer

# Looking at the sets must cost less than training them did: with more, layers are added one by one.
MOST_SETS = 20
# A race runs on one half of the held-out data: at most so many rounds, each on a part of its own of at least so many
# examples.
ROUNDS = 6
FEWEST_EXAMPLES = 32
# The winner is compared with evenly spaced layers on the other half, in so many blocks of at least so many examples.
BLOCKS, FEWEST_IN_BLOCK = 10, 4
# The 97.5 % point of Student's t with BLOCKS - 1 degrees of freedom.
BEYOND_NOISE = 2.262
# So many held-out examples tell layers apart; more would make reading a large data set dearer than training on it.
MOST_EXAMPLES = 2000

Reading = tuple[list[float], list[int] | None]


def by_gates(trainer: SearchTrainer) -> Reading:
    """A layer's score is its gate."""
    return trainer.gates() or [], None


def perturbation(trainer: SearchTrainer) -> Reading:
    """A layer's score is what the held-out loss rises by when its gate is closed; without gates, all are open first."""
    gates, count = trainer.gates(), len(trainer.tuner.candidate_layers)
    values = torch.ones(1, count) if gates is None else torch.tensor(gates)[None]
    closed = [values * (1 - torch.eye(count)[place]) for place in range(count)]
    settings = [partial(trainer.tuner.gating, one) for one in (values, *closed)]
    before, *losses = trainer.held_out_losses(settings, parts=math.ceil(_held_out(trainer) / MOST_EXAMPLES))
    return [loss - before for loss in losses], None


def sets(trainer: SearchTrainer) -> Reading:
    """The discrete network with the lowest held-out loss, of all with as many layers as are wanted, by a race.

    Evenly spaced layers are taken instead unless it beats them beyond noise. With more than `MOST_SETS` sets, one is
    built greedily. A layer's score is minus the mean loss of the sets with that layer, on the part of the held-out half
    that all have run on.
    """
    candidates, size = trainer.tuner.candidate_layers, trainer.search.num_prompt_layers or 1
    if math.comb(len(candidates), size) > MOST_SETS:
        return greedy(trainer)
    every = list(itertools.combinations(candidates, size))
    winner, losses = _race(trainer, every)
    by_layer = [[loss for layers, loss in zip(every, losses, strict=True) if one in layers] for one in candidates]
    return [-sum(own) / len(own) for own in by_layer], _unless_chance(trainer, winner)


def greedy(trainer: SearchTrainer) -> Reading:
    """Layers are added one by one, each time the one that leaves the lowest held-out loss, by a race.

    Evenly spaced layers are taken instead unless what comes of it beats them beyond noise.

    A layer's score is minus the loss of the discrete network with that layer alone, on the part of the held-out half
    that all have run on.
    """
    candidates = trainer.tuner.candidate_layers
    scores: list[float] = []
    chosen: tuple[int, ...] = ()
    for _ in range(trainer.search.num_prompt_layers or 1):
        larger = [tuple(sorted((*chosen, layer))) for layer in candidates if layer not in chosen]
        chosen, losses = _race(trainer, larger)
        scores = scores or [-loss for loss in losses]
    return scores, _unless_chance(trainer, chosen)


def _race(trainer: SearchTrainer, every: list[LayerSet]) -> tuple[LayerSet, list[float]]:
    """The set whose discrete network has the lowest held-out loss, and the losses of all on a first part of the data.

    All sets run on a first part of the race's half of the held-out data, the better half of them also on a second, and
    so on; what counts is the mean of the parts that a set has run on.
    """
    rounds = max(1, min(ROUNDS, _held_out(trainer) // 2 // FEWEST_EXAMPLES))
    totals = dict.fromkeys(every, 0.0)
    first: list[float] = []
    running = every
    for part in range(rounds):
        if part > 0 and len(running) == 1:
            break
        if part > 0:
            running = running[: max(2, math.ceil(len(running) / 2))]
        losses = _losses(trainer, running, part, rounds, half=0)
        first = first or losses
        for layers, loss in zip(running, losses, strict=True):
            totals[layers] += loss
        # Of equal sets the one that begins higher: it is the cheaper one to train.
        running = sorted(running, key=lambda layers: (totals[layers], [-layer for layer in layers]))
    return running[0], first


def _unless_chance(trainer: SearchTrainer, winner: LayerSet) -> list[int]:
    """The winner of a race, if it is better than evenly spaced layers by more than chance explains; else those.

    It is asked of examples that the race has not seen: the winner of a race is better on the race's own by selection.
    """
    spaced = evenly_spaced(trainer.tuner.candidate_layers, len(winner))
    if list(winner) == spaced:
        trainer.remarks.append("Evenly spaced layers had the lowest held-out loss.")
        return spaced
    if _held_out(trainer) // 2 // BLOCKS < FEWEST_IN_BLOCK:
        trainer.remarks.append(
            f"{_held_out(trainer)} held-out examples are too few to tell layers apart (it takes "
            f"{2 * BLOCKS * FEWEST_IN_BLOCK}); evenly spaced ones are taken, and need no search (sptune train)."
        )
        return spaced
    gains = []
    for block in range(BLOCKS):
        without, gained = _losses(trainer, [tuple(spaced), winner], block, BLOCKS, half=1)
        gains.append(without - gained)
    if statistics.mean(gains) > BEYOND_NOISE * statistics.stdev(gains) / math.sqrt(BLOCKS):
        return list(winner)
    trainer.remarks.append("No layers did better than evenly spaced ones beyond noise; those are taken.")
    return spaced


def _losses(trainer: SearchTrainer, every: Sequence[LayerSet], part: int, used: int, *, half: int) -> list[float]:
    """Held-out losses of discrete networks on one of so many parts of a half of the held-out data.

    Halves and parts never overlap, and no more than `MOST_EXAMPLES` lie in all of them.
    """
    parts = max(used, math.ceil(_held_out(trainer) * used / MOST_EXAMPLES))
    settings = [partial(trainer.tuner.prompting_at, layers) for layers in every]
    return trainer.held_out_losses(settings, 2 * part + half, 2 * parts)


def _held_out(trainer: SearchTrainer) -> int:
    return len(cast(Sized, trainer.gate_dataset))


READINGS: dict[str, Callable[[SearchTrainer], Reading]] = {
    "gates": by_gates,
    "perturbation": perturbation,
    "sets": sets,
    "greedy": greedy,
}
