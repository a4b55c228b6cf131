"""Progressive shrinking, as in P-DARTS (Chen, Xie, Wu and Tian, 2019): the weakest layers are dropped in stages."""

from __future__ import annotations

import torch

from sptune.modeling.gates import at_least_float32
from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.gate_sampler import GateSampler
from sptune.search.problem import Findings, SearchProblem

STAGES = 3


class ShrinkingGates(GateSampler):
    """The gates of DARTS in three stages that drops half of the layers after the first and the second stage.

    The layers with the smallest gates are dropped. At least `num_prompt_layers` layers always remain.
    """

    searchers = ("progressive",)

    def sample(self, size: int) -> torch.Tensor:
        """sigmoid(alpha) of the layers that remain and 0 for the others; (1, candidates)."""
        alphas = self.trainer.alphas
        return (torch.sigmoid(at_least_float32(alphas)) * self._remaining().to(alphas.device))[None]

    def trained(self) -> torch.Tensor:
        """sigmoid(alpha) of the layers that remain; those dropped have 0."""
        return self.trainer.tuner.gate_values() * self._remaining()

    def _remaining(self) -> torch.Tensor:
        """1 for layers that remain, 0 for others; from the history, which a resumed search has, too."""
        trainer = self.trainer
        entries, steps, count = trainer.history.entries, trainer.state.max_steps, len(trainer.tuner.generator_layers)
        warmup = trainer.warmup_steps(steps)
        remaining = list(range(count))
        for stage in range(1, STAGES):
            end = warmup + stage * (steps - warmup) // STAGES
            if 0 < end <= len(entries):
                keep = max(trainer.search.num_prompt_layers or 1, (len(remaining) + 1) // 2)
                gates = entries[end - 1]["gates"]
                remaining = sorted(remaining, key=lambda place: -gates[place])[:keep]
        return torch.tensor([float(place in remaining) for place in range(count)])


def find_layers(problem: SearchProblem) -> Findings:
    """Train gates and weights, on fewer and fewer layers."""
    return problem.train_supernet(SPTSearchTrainer, gate_sampler=ShrinkingGates)
