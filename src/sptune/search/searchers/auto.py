"""A search where the data can tell layers apart, evenly spaced layers where they cannot."""

from __future__ import annotations

from collections.abc import Sized

from sptune.search.problem import Findings, SearchProblem
from sptune.search.search_config import FEWEST_EXAMPLES, trains_network
from sptune.search.searchers import fair, spaced

SELECTIONS = fair.SELECTIONS


def search(problem: SearchProblem) -> Findings:
    """`fair` with enough training examples, `spaced` with fewer."""
    dataset = problem.train_dataset
    if not isinstance(dataset, Sized) or trains_network("auto", len(dataset)):
        return fair.search(problem)
    findings = spaced.search(problem)
    findings.remarks.append(
        f"{len(dataset)} training examples are too few for a search to tell layers apart (it takes {FEWEST_EXAMPLES}); "
        "evenly spaced layers are taken. The searcher 'fair' searches all the same."
    )
    return findings
