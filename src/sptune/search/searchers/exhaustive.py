"""Every set of layers, each with a fully trained network: the oracle of small backbones."""

from __future__ import annotations

from sptune.search.discrete_networks import all_sets, train_sets
from sptune.search.problem import Findings, SearchProblem
from sptune.search.searchers import check_sets


def find_layers(problem: SearchProblem) -> Findings:
    """Train a network for each set of `num_prompt_layers` layers, and take the one with the lowest held-out loss."""
    size = problem.search.num_prompt_layers or 1
    check_sets(problem.search.searcher, size, len(problem.candidates))
    return train_sets(problem, all_sets(problem.candidates, size), rungs=1)
