"""Training of many discrete networks, each with its own prompt layers, and dropping the worst of them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Iterator, Sequence, Sized
from typing import cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from sptune.search.data_split import split_dataset
from sptune.search.held_out import check_finite
from sptune.search.layer_selection import LayerSet
from sptune.search.problem import Findings, SearchProblem
from sptune.search.supernet_trainer import batches_of_epoch, check_batches, planned_steps
from sptune.training.divergence import DivergenceError
from sptune.training.trainer import SPTTrainer


def all_sets(candidates: Sequence[int], size: int) -> list[LayerSet]:
    """Every set of `size` candidate layers."""
    return list(itertools.combinations(candidates, size))


def train_sets(problem: SearchProblem, sets: list[LayerSet], rungs: int, keep: int = 1) -> Findings:
    """Train a network for each set on the weight split; after each rung but the last, drop those with the larger loss.

    Each network has its own generators and head. The rungs share the steps of `problem.args` evenly. Each continues
    from the weights of the rung before with a learning rate that falls to zero, so that networks are compared finished.
    In the end `problem.network` is as it was, also after an error.

    Args:
        problem: the search; it cannot be resumed and starts again.
        sets: the sets to begin with, all of one size.
        rungs: number of rungs; half of the sets, at least `keep`, enter the next one.
        keep: number of winning sets.

    Returns:
        The layers of the sets with the lowest losses on the architecture split after the last rung, and for each layer
        minus the lowest loss of its sets, when each was last trained. The history has an entry for each rung.

    Raises:
        InputError: the weight split makes no batch.
        SptuneError: all networks of a rung diverged.
    """
    started = time.monotonic()
    splits = split_dataset(problem.train_dataset, problem.search)
    args = _rung_arguments(problem.args, len(cast(Sized, splits[0])), rungs)
    sizes = _rung_sizes(len(sets), rungs, keep)
    problem.tell(f"Training {len(sets)} networks, {sum(sizes) * args.max_steps} steps in all.")
    losses, findings = dict[LayerSet, float](), Findings(scores=[])
    with _left_as_it_was(problem.network) as untrained:
        weights = dict.fromkeys(sets, untrained)
        for size in sizes:
            sets = sorted(sets, key=lambda layers: losses.get(layers, 0.0))[:size]
            current: dict[LayerSet, float] = {}
            for layers in sets:
                _load(problem.network, weights[layers])
                current[layers], steps = _train_set(problem, layers, args, splits)
                weights[layers] = _trainable(problem.network)
                findings.steps += steps
            check_finite([min(current.values())])
            losses |= current
            findings.history.append({"step": findings.steps, "losses": _lowest(current, problem.candidates)})
    winners = sorted(sets, key=lambda layers: losses[layers])[:keep]
    findings.prompt_layers = sorted({layer for layers in winners for layer in layers})
    findings.scores = [-math.inf if loss is None else -loss for loss in _lowest(losses, problem.candidates)]
    findings.seconds = time.monotonic() - started
    return findings


@contextlib.contextmanager
def _left_as_it_was(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """After the block the network has the trained weights of before, which the block is given."""
    untrained = _trainable(network)
    try:
        yield untrained
    finally:
        _load(network, untrained)


def _rung_sizes(count: int, rungs: int, keep: int) -> list[int]:
    """The number of sets in each rung: always half of the one before, at least `keep`."""
    sizes = [count]
    for _ in range(rungs - 1):
        sizes.append(max(keep, math.ceil(sizes[-1] / 2)))
    return sizes


def _rung_arguments(args: TrainingArguments, examples: int, rungs: int) -> TrainingArguments:
    """The training arguments of one rung, which evaluates once, at its end.

    Raises:
        InputError: the examples make no batch.
    """
    check_batches(batches_of_epoch(args, examples), args.train_batch_size, "weight split", "lower gate_fraction")
    args = copy.copy(args)
    args.max_steps = max(1, planned_steps(args, examples) // rungs)
    if args.warmup_steps >= 1:  # below that it is a share of the steps
        args.warmup_steps = round(args.warmup_steps / rungs)
    args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, args.max_steps
    args.eval_on_start, args.eval_delay = False, 0
    args.save_strategy, args.load_best_model_at_end = SaveStrategy.NO, False
    return args


def _train_set(
    problem: SearchProblem, layers: LayerSet, args: TrainingArguments, splits: tuple[Dataset, Dataset]
) -> tuple[float, int]:
    """Train the network with prompts at these layers for one rung.

    Returns:
        Its held-out loss, infinite if it diverged, and the number of steps.
    """
    with problem.tuner.prompting_at(layers):
        trainer = SPTTrainer(
            problem.network, copy.copy(args), train_dataset=splits[0], eval_dataset=splits[1], **problem.options
        )
        try:
            trainer.train()
        except DivergenceError:
            return math.inf, trainer.state.global_step
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        if not losses:  # a callback ended the training, or dataloader_drop_last left no held-out batch
            trainer.args.dataloader_drop_last = False
            losses = [trainer.evaluate()["eval_loss"]]
    loss = losses[-1]
    return loss if math.isfinite(loss) else math.inf, trainer.state.global_step


def _lowest(losses: dict[LayerSet, float], candidates: list[int]) -> list[float | None]:
    """For each candidate, the lowest loss of the sets with it; None without such a set."""
    return [min((loss for layers, loss in losses.items() if one in layers), default=None) for one in candidates]


def _trainable(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.requires_grad}


def _load(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
