"""Every set of layers, each with a fully trained network: the oracle of small backbones."""

from __future__ import annotations

import math

from sptune.errors import InputError
from sptune.search.discrete_networks import all_sets, train_sets
from sptune.search.problem import Findings, SearchProblem

MAX_SETS = 100


def find_layers(problem: SearchProblem) -> Findings:
    """Train a network for each set of `num_prompt_layers` layers, and take the one with the lowest held-out loss."""
    size = problem.search.num_prompt_layers or 1
    check_sets(size, len(problem.candidates))
    return train_sets(problem, all_sets(problem.candidates, size), rungs=1)


def check_sets(size: int, candidates: int) -> None:
    """Refuse a search among more than `MAX_SETS` sets.

    Args:
        size: layers in a set.
        candidates: how many layers there are to choose from.

    Raises:
        InputError: there are more.
    """
    count = math.comb(candidates, size)
    if count > MAX_SETS:
        raise InputError(
            f"searcher='exhaustive' would train {count} networks for {size} of {candidates} layers, more than "
            f"{MAX_SETS}; choose fewer layers or candidates, or another searcher."
        )
