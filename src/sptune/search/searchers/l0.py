"""Hard-concrete gates with an L0 penalty (Louizos, Welling and Kingma, 2018)."""

from __future__ import annotations

import math
from functools import partial

import torch

from sptune.modeling.gates import at_least_float32
from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.gate_sampler import GateSampler
from sptune.search.problem import Findings, SearchProblem
from sptune.search.searchers.gumbel import TEMPERATURE, binary_concrete

# The stretch of the paper's section 3.
LOWEST, HIGHEST = -0.1, 1.1
# Penalty of an open gate; about as large as the gain of one more layer on a validation loss of about 0.5.
PENALTY = 0.02


class HardConcreteGates(GateSampler):
    """Gates that are exactly 0 or exactly 1 with a probability above 0, and a penalty on each open gate."""

    searchers = ("l0",)

    def sample(self, size: int) -> torch.Tensor:
        """Gates a = clip(s (1.1 + .1) - .1, 0, 1) with s binary concrete, (size, candidates)."""
        return _stretched(self.trainer.draw_rows(partial(binary_concrete, self.trainer.alphas), size))

    def trained(self) -> torch.Tensor:
        """The paper's gates after training, clip(sigmoid(alpha) (1.1 + .1) - .1, 0, 1)."""
        return _stretched(self.trainer.tuner.gate_values())

    def penalty(self) -> torch.Tensor:
        """`PENALTY` times the expected number of open gates, sum_i P(a_i > 0)."""
        shift = TEMPERATURE * math.log(-LOWEST / HIGHEST)
        return PENALTY * torch.sigmoid(at_least_float32(self.trainer.alphas) - shift).sum()


def _stretched(gates: torch.Tensor) -> torch.Tensor:
    return (gates * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1)


def find_layers(problem: SearchProblem) -> Findings:
    """Train gates and weights under sampled gates, with a penalty on open gates."""
    return problem.train_supernet(SPTSearchTrainer, gate_sampler=HardConcreteGates)
