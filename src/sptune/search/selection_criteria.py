"""How a trained supernet selects layers: by gates, or by held-out losses; sets must beat evenly spaced layers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import NamedTuple, cast

import torch

from sptune.search.layer_selection import LayerSet, evenly_spaced
from sptune.search.supernet_trainer import SupernetTrainer

# Evaluating the sets must cost less than training the supernet. With more sets, layers are added one by one.
MAX_SETS = 20
# A race runs on one half of the architecture split, in up to this many rounds. Each has a part of its own.
MAX_ROUNDS, MIN_IN_ROUND = 6, 32
# On the other half the winner is compared with evenly spaced layers, block by block.
BLOCKS, MIN_IN_BLOCK = 10, 4
# Two-sided level of the paired t-test over the blocks.
SIGNIFICANCE = 0.05
# This many examples tell layers apart; with more, selection would cost more than training on a large dataset.
MAX_EXAMPLES = 2000


class Selection(NamedTuple):
    """The result of a criterion.

    Attributes:
        scores: one for each candidate layer, the larger the better.
        prompt_layers: the layers, where the criterion chooses a set and does not rank layers by their scores.
    """

    scores: list[float]
    prompt_layers: list[int] | None = None


def by_gates(trainer: SupernetTrainer) -> Selection:
    """A layer's score is its gate."""
    return Selection(trainer.gates() or [])


def by_perturbation(trainer: SupernetTrainer) -> Selection:
    """A layer's score is the rise of the held-out loss when its gate is closed; without gates, all others are open."""
    gates, count = trainer.gates(), len(trainer.tuner.generator_layers)
    values = torch.ones(1, count) if gates is None else torch.tensor(gates)[None]
    closed = [values * (1 - torch.eye(count)[place]) for place in range(count)]
    variants = [partial(trainer.tuner.gating, one) for one in (values, *closed)]
    before, *losses = trainer.held_out.losses(variants, parts=math.ceil(_held_out(trainer) / MAX_EXAMPLES))
    return Selection([loss - before for loss in losses])


def by_sets(trainer: SupernetTrainer) -> Selection:
    """The set of `num_prompt_layers` layers whose discrete network has the lowest held-out loss, found by a race.

    Evenly spaced layers are taken instead unless the set beats them beyond noise. With more than `MAX_SETS` sets, one
    is built greedily. A layer's score is minus the mean loss of the sets with that layer, in the first round.
    """
    candidates, size = trainer.tuner.generator_layers, trainer.search.num_prompt_layers or 1
    if math.comb(len(candidates), size) > MAX_SETS:
        return greedily(trainer)
    every = list(itertools.combinations(candidates, size))
    winner, losses = _race(trainer, every)
    by_layer = [[loss for layers, loss in zip(every, losses, strict=True) if one in layers] for one in candidates]
    return Selection([-sum(own) / len(own) for own in by_layer], _if_significant(trainer, winner))


def greedily(trainer: SupernetTrainer) -> Selection:
    """Layers are added one by one, each time the one that gives the lowest held-out loss, found by a race.

    Evenly spaced layers are taken instead unless the result beats them beyond noise. A layer's score is minus the loss
    of the discrete network with that layer alone, in the first round.
    """
    candidates = trainer.tuner.generator_layers
    scores: list[float] = []
    chosen: tuple[int, ...] = ()
    for _ in range(trainer.search.num_prompt_layers or 1):
        larger = [tuple(sorted((*chosen, layer))) for layer in candidates if layer not in chosen]
        chosen, losses = _race(trainer, larger)
        scores = scores or [-loss for loss in losses]
    return Selection(scores, _if_significant(trainer, chosen))


# The names are those of `SELECTION_CRITERIA`.
CRITERIA: dict[str, Callable[[SupernetTrainer], Selection]] = {
    "gates": by_gates,
    "perturbation": by_perturbation,
    "sets": by_sets,
    "greedy": greedily,
}


def _race(trainer: SupernetTrainer, every: list[LayerSet]) -> tuple[LayerSet, list[float]]:
    """The set whose discrete network has the lowest held-out loss, and the losses of all sets in the first round.

    All sets run on the first part of the race's half of the data, the better half of them also on the second, and so
    on; sets are compared by the mean over the parts that they have run on.
    """
    rounds = max(1, min(MAX_ROUNDS, _held_out(trainer) // 2 // MIN_IN_ROUND))
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
        # Of equal sets, the one whose lowest layer is higher costs less to train.
        running = sorted(running, key=lambda layers: (totals[layers], [-layer for layer in layers]))
    return running[0], first


def _if_significant(trainer: SupernetTrainer, winner: LayerSet) -> list[int]:
    """The winner of a race if it beats evenly spaced layers beyond noise, otherwise evenly spaced layers.

    They are compared on examples that were not part of the race, where its winner is better by selection.
    """
    spaced = evenly_spaced(trainer.tuner.generator_layers, len(winner))
    if list(winner) == spaced:
        trainer.remarks.append("Evenly spaced layers had the lowest held-out loss.")
        return spaced
    if _held_out(trainer) // 2 // BLOCKS < MIN_IN_BLOCK:
        trainer.remarks.append(
            f"{_held_out(trainer)} held-out examples are too few to tell layers apart (at least "
            f"{2 * BLOCKS * MIN_IN_BLOCK} are needed); evenly spaced layers are taken, which need no search "
            "(sptune train)."
        )
        return spaced
    gains = []
    for block in range(BLOCKS):
        without, gained = _losses(trainer, [tuple(spaced), winner], block, BLOCKS, half=1)
        gains.append(without - gained)
    if statistics.mean(gains) > _critical_value() * statistics.stdev(gains) / math.sqrt(BLOCKS):
        return list(winner)
    trainer.remarks.append("No layers beat evenly spaced ones beyond noise; evenly spaced layers are taken.")
    return spaced


def _critical_value() -> float:
    """The quantile of Student's t for a mean over `BLOCKS` blocks."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(1 - SIGNIFICANCE / 2, BLOCKS - 1))


def _losses(trainer: SupernetTrainer, every: Sequence[LayerSet], part: int, used: int, *, half: int) -> list[float]:
    """Held-out losses of discrete networks on one of `used` parts of a half of the architecture split.

    Halves and parts never overlap, and together they hold no more than `MAX_EXAMPLES` examples.
    """
    parts = max(used, math.ceil(_held_out(trainer) * used / MAX_EXAMPLES))
    variants = [partial(trainer.tuner.prompting_at, layers) for layers in every]
    return trainer.held_out.losses(variants, 2 * part + half, 2 * parts)


def _held_out(trainer: SupernetTrainer) -> int:
    return len(cast(Sized, trainer.architecture_dataset))
