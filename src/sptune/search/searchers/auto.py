"""A search where the data can tell layers apart, evenly spaced layers where they cannot."""

from __future__ import annotations

from collections.abc import Sized

from sptune.search.problem import Findings, SearchProblem
from sptune.search.searchers import SEARCHERS, fair, spaced


def find_layers(problem: SearchProblem) -> Findings:
    """`fair` with enough training examples and layers to choose from, otherwise `spaced`."""
    dataset, auto = problem.train_dataset, SEARCHERS["auto"]
    examples = len(dataset) if isinstance(dataset, Sized) else auto.min_examples
    spare = len(problem.candidates) - (problem.search.num_prompt_layers or 1)
    if auto.trains(examples, spare):
        return fair.find_layers(problem)
    findings = spaced.find_layers(problem)
    if spare < auto.min_spare:
        findings.remarks.append("There are no more candidate layers than prompt layers, so nothing is searched.")
        return findings
    findings.remarks.append(
        f"{examples} training examples are too few for a search to tell layers apart (at least "
        f"{SEARCHERS['auto'].min_examples} are needed); evenly spaced layers are taken. To search anyway, choose "
        "searcher='fair'."
    )
    return findings
