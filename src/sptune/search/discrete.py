"""Training of many discrete networks, each with prompts at layers of its own, and dropping the worst of them."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Sequence, Sized
from typing import cast

import torch
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from sptune.search.data_split import split_dataset
from sptune.search.layer_selection import LayerSet
from sptune.search.problem import Findings, SearchProblem
from sptune.search.supernet_trainer import check_finite, planned_steps
from sptune.training.trainer import SPTTrainer


def all_sets(candidates: Sequence[int], size: int) -> list[LayerSet]:
    """Every set of so many candidate layers."""
    return list(itertools.combinations(candidates, size))


def train_sets(problem: SearchProblem, sets: list[LayerSet], rungs: int, keep: int = 1) -> Findings:
    """Train a network for each set on the weight half; after each rung but the last, drop those with the larger loss.

    Each network has generators and a head of its own. The rungs share the steps of `problem.args` evenly; each has a
    learning rate that falls to zero, so that losses are those of finished networks, and goes on from the weights of the
    one before. Layers below a set run once for each example, where the activation cache is on.

    Args:
        problem: the search; it cannot be resumed and begins anew.
        sets: the sets to begin with, all of one size.
        rungs: how many rungs there are; half of the sets, at least `keep`, goes on to the next.
        keep: how many sets win.

    Returns:
        The layers of the sets with the lowest losses on the gate half after the last rung, and for each layer minus the
        lowest loss of its sets, when each was last trained. The history has an entry for each rung.

    Raises:
        SptuneError: all networks of a rung diverged.
    """
    started = time.monotonic()
    weight_half, gate_half = split_dataset(problem.train_dataset, problem.search)
    args = copy.copy(problem.args)
    args.max_steps = max(1, planned_steps(args, len(cast(Sized, weight_half))) // rungs)
    if args.warmup_steps >= 1:  # below that it is a share of the steps
        args.warmup_steps = round(args.warmup_steps / rungs)
    args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, args.max_steps
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    untrained = _trainable(problem.network)
    weights = dict.fromkeys(sets, untrained)
    losses: dict[LayerSet, float] = {}
    findings = Findings(scores=[])
    sizes = [len(sets)]
    for _ in range(rungs - 1):
        sizes.append(max(keep, math.ceil(sizes[-1] / 2)))
    problem.tell(f"Training {len(sets)} networks, {sum(sizes) * args.max_steps} steps in all.")
    for rung in range(rungs):
        current: dict[LayerSet, float] = {}
        for layers in sets:
            _load(problem.network, weights[layers])
            with problem.tuner.prompting_at(layers):
                trainer = SPTTrainer(
                    problem.network, args, train_dataset=weight_half, eval_dataset=gate_half, **problem.options
                )
                trainer.train()
            loss = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
            current[layers] = loss if math.isfinite(loss) else math.inf
            weights[layers] = _trainable(problem.network)
            findings.steps += trainer.state.global_step
        losses |= current
        check_finite([min(current.values())])
        lowest = [min((loss for layers, loss in current.items() if one in layers), default=None)
                  for one in problem.candidates]  # fmt: skip
        findings.history.append({"step": findings.steps, "losses": lowest})
        if rung + 1 < rungs:
            sets = sorted(sets, key=lambda layers: current[layers])[: sizes[rung + 1]]
    _load(problem.network, untrained)
    winners = sorted(sets, key=lambda layers: losses[layers])[:keep]
    findings.prompt_layers = sorted({layer for layers in winners for layer in layers})
    findings.scores = [
        -min((loss for layers, loss in losses.items() if one in layers), default=math.inf) for one in problem.candidates
    ]
    findings.seconds = time.monotonic() - started
    return findings


def _trainable(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.requires_grad}


def _load(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
