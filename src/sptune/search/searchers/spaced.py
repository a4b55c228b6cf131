"""Layers at even distances: no training, and hard to beat in a shallow backbone (docs/results/search.md)."""

from __future__ import annotations

from sptune.search.layer_selection import evenly_spaced
from sptune.search.problem import Findings, SearchProblem


def find_layers(problem: SearchProblem) -> Findings:
    """One layer is the middle one of the candidates, two are those at a third and two thirds."""
    layers = evenly_spaced(problem.candidates, problem.search.num_prompt_layers or 1)
    return Findings(scores=[float(layer in layers) for layer in problem.candidates], prompt_layers=layers)
