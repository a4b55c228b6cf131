"""Gates that learn from discrete networks (method section 9): a gate is the probability that its layer is drawn."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from sptune.modeling.gates import at_least_float32
from sptune.search.bilevel_trainer import LOSS_NAMES, SPTSearchTrainer, repeat_batch
from sptune.search.gate_sampler import GateSampler
from sptune.search.problem import Findings, SearchProblem
from sptune.search.supernet_trainer import check_discrete
from sptune.training.loss_items import batch_size

# Share of uniform draws among the sets that weights are trained under, so that no layer is left behind.
EXPLORATION = 0.5
# In nats: the largest effect that a single example may have.
MAX_DIFFERENCE = 2.0

Batch = dict[str, Any]


class SampledSets(GateSampler):
    """Gates of discrete networks that share weights: 1 at the layers of a set that is drawn, 0 elsewhere.

    With p = softmax(alpha), a set S of k layers is drawn without replacement (Plackett and Luce). Weight step: each
    row of the batch draws its own set from (1 - eps) p + eps uniform, so that generators and head learn as discrete
    networks. Architecture step: each example runs under two sets, forward only, and

        g_alpha = mean over examples of (l(x, S1) - l(x, S2)) / 2 (grad log p(S1) - grad log p(S2)),

    the differences clipped. These sets are drawn uniformly, so that alpha ranks layers by the mean loss of the sets
    with them.
    """

    searchers = ("sampled",)
    architecture_passes = 2 / 3  # forward only, over twice the rows

    def __init__(self, trainer: SPTSearchTrainer) -> None:
        super().__init__(trainer)
        check_discrete(trainer)

    def sample(self, size: int) -> torch.Tensor:
        """(size, candidates): each row 1 at the layers of its set, 0 elsewhere."""
        p = self.trained()
        mixed = (1 - EXPLORATION) * p + EXPLORATION / len(p)
        order = self.trainer.draw_rows(partial(draw_sets, torch.log(mixed), self._size), size)
        return torch.zeros(size, len(p), device=p.device).scatter_(1, order, 1.0)

    def trained(self) -> torch.Tensor:
        """softmax(alpha)."""
        return torch.softmax(at_least_float32(self.trainer.alphas.detach()), 0)

    def backward_architecture(
        self, model: nn.Module, batch: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> None:
        """Add this micro-batch's part of g_alpha, from forward passes alone, to the gradients of alpha."""
        with self.trainer.caching.reading(batch):
            gradient = self._alpha_gradient(model, cast(Batch, self.trainer._prepare_inputs(batch)))
        # No backward pass averages it over the processes.
        parts = self.trainer.accelerator.reduce(gradient, "mean").split(1)
        for alpha, part in zip(self.trainer.alpha_parameters, parts, strict=True):
            alpha.grad = part.to(alpha) if alpha.grad is None else alpha.grad + part.to(alpha)

    def _alpha_gradient(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """The part of g_alpha, (candidates,), of a micro-batch."""
        trainer, count = self.trainer, batch_size(inputs)
        sizes = trainer.batch_sizes(count)
        # The mean over the processes is one over their examples.
        share = count * len(sizes) / sum(sizes) / trainer.micro_batches
        log_p = torch.log_softmax(at_least_float32(trainer.alphas), 0)
        order = trainer.draw_rows(partial(self._draw_pairs, len(log_p)), count).flatten(0, 1).to(log_p.device)
        gates = torch.zeros(2 * count, len(log_p), device=log_p.device).scatter_(1, order, 1.0)
        was_training = model.training
        model.eval()  # the sets are compared, not the dropout of the head
        with torch.no_grad(), trainer.compute_loss_context_manager(), trainer.tuner.gating(gates):
            losses = trainer.row_losses(model, repeat_batch(inputs)).to(log_p.device)
        model.train(was_training)
        trainer.record(LOSS_NAMES["architecture"], losses.mean() * share)
        difference = (losses[:count] - losses[count:]).clamp(-MAX_DIFFERENCE, MAX_DIFFERENCE)
        log_probability = set_log_probability(log_p, order)
        surrogate = (0.5 * difference * (log_probability[:count] - log_probability[count:])).mean()
        parts = torch.autograd.grad(surrogate, trainer.alpha_parameters)
        return torch.cat([part.to(log_p.device) for part in parts]) * share

    def _draw_pairs(self, candidates: int, number: int, generator: torch.Generator) -> torch.Tensor:
        """Pairs of different sets, (2, number, k); see `draw_pairs`."""
        return draw_pairs(candidates, self._size, number, generator).view(2, number, -1)

    @property
    def _size(self) -> int:
        return self.trainer.search.num_prompt_layers or 1


def draw_sets(log_weights: torch.Tensor, size: int, number: int, generator: torch.Generator) -> torch.Tensor:
    """Sets of `size` candidates drawn without replacement, each next one by its weight among those left.

    By the Gumbel top-k trick (Kool, van Hoof and Welling, 2019).

    Args:
        log_weights: (candidates,).
        size: k.
        number: number of sets.
        generator: of the random numbers.

    Returns:
        (number, k) places of candidates, in the order in which they were drawn.
    """
    u = torch.rand(number, len(log_weights), generator=generator).clamp(1e-9, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(u)).to(log_weights.device)
    return (log_weights + gumbel).topk(min(size, len(log_weights)), dim=1).indices


def draw_pairs(candidates: int, size: int, number: int, generator: torch.Generator) -> torch.Tensor:
    """Pairs of different sets, drawn uniformly.

    Args:
        candidates: number of candidates.
        size: k.
        number: number of pairs.
        generator: of the random numbers.

    Returns:
        (2 number, k) places; row i and row number + i are a pair.
    """
    order = draw_sets(torch.zeros(candidates), size, 2 * number, generator)
    while size < candidates:
        members = torch.zeros(2 * number, candidates).scatter_(1, order, 1.0)
        same = (members[:number] == members[number:]).all(1).nonzero()[:, 0]
        if not len(same):
            break
        order[number + same] = draw_sets(torch.zeros(candidates), size, len(same), generator)
    return order


def set_log_probability(log_p: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The log probability of sets by order of drawing: sum_j log p_j - log(1 - sum of those drawn before).

    Args:
        log_p: (candidates,), normalized.
        order: (number, k) places.

    Returns:
        (number,).
    """
    drawn = log_p[order]
    before = drawn.exp().cumsum(1) - drawn.exp()
    left = (1 - before).clamp_min(math.exp(-20))
    return (drawn - torch.log(left)).sum(1)


def find_layers(problem: SearchProblem) -> Findings:
    """Train discrete networks on shared weights, and the probabilities of their layers by paired losses."""
    return problem.train_supernet(SPTSearchTrainer, gate_sampler=SampledSets)
