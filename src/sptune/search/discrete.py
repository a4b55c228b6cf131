"""Training of many discrete networks, each with prompts at layers of its own, and dropping the worst of them."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Sequence

import torch
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from sptune.search.halves import split_dataset
from sptune.search.problem import Findings, SearchProblem
from sptune.search.selection import LayerSet
from sptune.training import SPTTrainer


def all_sets(candidates: Sequence[int], size: int) -> list[LayerSet]:
    """Every set of so many candidate layers."""
    return list(itertools.combinations(candidates, size))


def train_sets(problem: SearchProblem, sets: list[LayerSet], rungs: int) -> Findings:
    """Train a network for each set on the weight half; after each rung but the last, drop those with the larger loss.

    Each network has generators and a head of its own. The rungs share the steps of `problem.args` evenly; each has a
    learning rate that falls to zero, so that losses are those of finished networks, and goes on from the weights of the
    one before. Layers below a set run once for each example, where the prefix cache is on.

    Args:
        problem: the search; it cannot be resumed and begins anew.
        sets: the sets to begin with, all of one size.
        rungs: how many rungs there are; half of the sets, at least one, goes on to the next.

    Returns:
        The set with the lowest loss on the gate half, and for each layer minus the lowest loss of its sets. The history
        has an entry for each rung.
    """
    started = time.monotonic()
    weight_half, gate_half = split_dataset(problem.train_dataset, problem.search)
    args = copy.copy(problem.args)
    args.max_steps = max(1, args.max_steps // rungs)
    args.warmup_steps = round(problem.args.warmup_steps / rungs)
    args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, args.max_steps
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    untrained = _trainable(problem.network)
    weights = dict.fromkeys(sets, untrained)
    losses: dict[LayerSet, float] = {}
    findings = Findings(scores=[])
    for rung in range(rungs):
        current: dict[LayerSet, float] = {}
        for layers in sets:
            _load(problem.network, weights[layers])
            with problem.tuner.prompting_at(layers):
                trainer = SPTTrainer(
                    problem.network, args, train_dataset=weight_half, eval_dataset=gate_half, **problem.options
                )
                trainer.train()
            current[layers] = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
            weights[layers] = _trainable(problem.network)
            findings.steps += trainer.state.global_step
        losses |= current
        lowest = [min((loss for layers, loss in current.items() if one in layers), default=None)
                  for one in problem.candidates]  # fmt: skip
        findings.history.append({"step": findings.steps, "losses": lowest})
        if rung + 1 < rungs:
            sets = sorted(sets, key=lambda layers: current[layers])[: math.ceil(len(sets) / 2)]
    _load(problem.network, untrained)
    best: LayerSet = min(sets, key=lambda layers: losses[layers])
    findings.prompt_layers = list(best)
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
