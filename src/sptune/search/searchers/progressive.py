"""Progressive shrinking, as in P-DARTS (Chen, Xie, Wu and Tian, 2019): the weakest layers are dropped in stages."""

from __future__ import annotations

import torch

from sptune.gates import at_least_float32
from sptune.search.gate_training import SPTSearchTrainer
from sptune.search.problem import Findings, SearchProblem

SELECTIONS = ("gates", "perturbation", "greedy")

STAGES = 3


class ProgressiveTrainer(SPTSearchTrainer):
    """DARTS in three stages; after each of the first two, half of the remaining layers go, those with the smallest gates.

    As many layers as are wanted always remain.
    """

    searchers = ("progressive",)

    def sample_gates(self, size: int) -> torch.Tensor:
        """sigmoid(alpha) of the layers that remain and 0 for the others; (1, candidates)."""
        return (torch.sigmoid(at_least_float32(self.alphas)) * self._remaining().to(self.alphas.device))[None]

    def scores(self) -> list[float]:
        """Gates of those that remain, between 1 and 2; those dropped score less, the earlier the less."""
        return [gate + stage for gate, stage in zip(super().scores(), self._stages_survived(), strict=True)]

    def _remaining(self) -> torch.Tensor:
        survived = torch.tensor(self._stages_survived())
        return (survived == survived.max()).float()

    def _stages_survived(self) -> list[int]:
        """How many reductions each candidate has come through, from the history, so that a resumed search knows too."""
        entries, steps = self.history.entries, self.state.max_steps
        warmup = self._warmup_steps(steps)
        survived = [0] * len(self._alphas)
        alive = list(range(len(survived)))
        for stage in range(1, STAGES):
            end = warmup + stage * (steps - warmup) // STAGES
            if len(entries) < end or end == 0:
                break
            gates = entries[end - 1]["gates"]
            keep = max(self.search.num_prompt_layers or 1, (len(alive) + 1) // 2)
            alive = sorted(alive, key=lambda place: -gates[place])[:keep]
            for place in alive:
                survived[place] += 1
        return survived


def search(problem: SearchProblem) -> Findings:
    """Train gates and weights, on fewer and fewer layers."""
    return problem.train(ProgressiveTrainer)
