"""Layers drawn at random: what every other searcher must beat."""

from __future__ import annotations

import torch

from sptune.search.problem import Findings, SearchProblem

SELECTIONS: tuple[str, ...] = ()


def search(problem: SearchProblem) -> Findings:
    """Scores are uniform random numbers that follow from the seed; nothing is trained."""
    generator = torch.Generator().manual_seed(problem.search.seed)
    return Findings(scores=torch.rand(len(problem.candidates), generator=generator).tolist())
