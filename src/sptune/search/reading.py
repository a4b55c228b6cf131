"""Ways to read a trained search network, besides its gates: what the held-out half of the data loses or gains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from sptune.search.trainer import SearchTrainer

Reading = tuple[list[float], list[int] | None]


def perturbation(trainer: SearchTrainer, gates: list[float] | None) -> Reading:
    """A layer's score is what the held-out loss rises by when its gate is closed.

    Args:
        trainer: holds the trained search network.
        gates: the gates to begin from; None for all open.
    """
    count = len(trainer.tuner.candidate_layers)
    values = torch.ones(1, count) if gates is None else torch.tensor(gates)[None]
    closed = [values * (1 - torch.eye(count)[place]) for place in range(count)]
    before, *losses = trainer.held_out_losses([partial(trainer.tuner.gating, one) for one in (values, *closed)])
    return [loss - before for loss in losses], None


def greedy(trainer: SearchTrainer, gates: list[float] | None) -> Reading:
    """Layers are added one by one, each time the one that leaves the lowest held-out loss of the discrete network.

    A layer's score is minus the held-out loss of the network with that layer alone.

    Args:
        trainer: holds the trained search network.
        gates: not looked at.
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


READINGS: dict[str, Callable[[SearchTrainer, list[float] | None], Reading]] = {
    "perturbation": perturbation,
    "greedy": greedy,
}
