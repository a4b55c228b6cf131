"""A search where the data can tell layers apart, evenly spaced layers where they cannot."""

from __future__ import annotations

from collections.abc import Sized

from sptune.search.problem import Findings, SearchProblem
from sptune.search.searchers import SEARCHERS, fair, spaced


def find_layers(problem: SearchProblem) -> Findings:
    """`fair` with enough training examples, `spaced` with fewer."""
    dataset = problem.train_dataset
    if not isinstance(dataset, Sized) or SEARCHERS["auto"].trains(len(dataset)):
        return fair.find_layers(problem)
    findings = spaced.find_layers(problem)
    findings.remarks.append(
        f"{len(dataset)} training examples are too few for a search to tell layers apart (at least "
        f"{SEARCHERS['auto'].min_examples} are needed); evenly spaced layers are taken. To search anyway, choose "
        "searcher='fair'."
    )
    return findings
