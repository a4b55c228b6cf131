"""Successive halving (Jamieson and Talwalkar, 2016) over real discrete networks."""

from __future__ import annotations

import math

from sptune.search.discrete_networks import all_sets, train_sets
from sptune.search.problem import Findings, SearchProblem

# With more sets than this, single layers compete instead, and the best of them are taken together.
MAX_SETS = 10


def find_layers(problem: SearchProblem) -> Findings:
    """Train a network for each set of layers, and drop half of the sets after each rung."""
    size = problem.search.num_prompt_layers or 1
    together = math.comb(len(problem.candidates), size) <= MAX_SETS
    sets, keep = all_sets(problem.candidates, size if together else 1), 1 if together else size
    return train_sets(problem, sets, rungs=max(1, math.ceil(math.log2(len(sets) / keep))), keep=keep)
