"""Every set of layers trained to the end: the oracle of small backbones."""

from __future__ import annotations

import math

from sptune.errors import InputError
from sptune.search.discrete import all_sets, train_sets
from sptune.search.problem import Findings, SearchProblem

SELECTIONS: tuple[str, ...] = ()
MOST_SETS = 100


def search(problem: SearchProblem) -> Findings:
    """Train a network for each set of as many layers as are wanted, and take the one with the lowest held-out loss."""
    size = problem.search.num_prompt_layers or 1
    count = math.comb(len(problem.candidates), size)
    if count > MOST_SETS:
        raise InputError(
            f"searcher='exhaustive' would train {count} networks for {size} of {len(problem.candidates)} layers, more "
            f"than {MOST_SETS}; choose fewer layers or candidates, or another searcher."
        )
    return train_sets(problem, all_sets(problem.candidates, size), rungs=1)
