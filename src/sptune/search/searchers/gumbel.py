"""Sampled gates: binary concrete (Maddison, Mnih and The, 2017) in place of sigmoid(alpha)."""

from __future__ import annotations

from functools import partial

import torch

from sptune.modeling.gates import at_least_float32
from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.gate_sampler import GateSampler
from sptune.search.problem import Findings, SearchProblem

# Maddison et al. found 2/3 to work for binary variables.
TEMPERATURE = 2 / 3


class ConcreteGates(GateSampler):
    """Every example of every batch has its own gates."""

    searchers = ("gumbel",)

    def sample(self, size: int) -> torch.Tensor:
        """Gates a = sigmoid((alpha + log u - log(1 - u)) / temperature), u uniform in (0, 1), (size, candidates)."""
        return self.trainer.draw_rows(partial(binary_concrete, self.trainer.alphas), size)


def binary_concrete(alphas: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Samples of relaxed Bernoulli gates whose probability of being above 1/2 is sigmoid(alpha).

    Args:
        alphas: (candidates,).
        size: number of samples.
        generator: of the random numbers.

    Returns:
        (size, candidates), with gradients to `alphas`.
    """
    u = torch.rand(size, len(alphas), generator=generator).clamp(1e-6, 1 - 1e-6).to(alphas.device)
    return torch.sigmoid((at_least_float32(alphas) + torch.logit(u)) / TEMPERATURE)


def find_layers(problem: SearchProblem) -> Findings:
    """Train gates and weights under sampled gates."""
    return problem.train_supernet(SPTSearchTrainer, gate_sampler=ConcreteGates)
