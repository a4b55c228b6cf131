"""`fair` with enough training examples and layers to choose from, otherwise `spaced`, before anything is trained."""

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
        findings.remarks.append(_nothing_to_search(problem.candidates))
        return findings
    findings.remarks.append(
        f"{examples} training examples are too few for a search to tell layers apart (at least "
        f"{SEARCHERS['auto'].min_examples} are needed); evenly spaced layers are taken. To search anyway, choose "
        "searcher='fair'."
    )
    return findings


def _nothing_to_search(candidates: list[int]) -> str:
    """What happens where every candidate becomes a prompt layer."""
    if len(candidates) == 1:
        return f"The only candidate layer ({candidates[0]}) gets a prompt, so there is nothing to search."
    in_a_row = len(candidates) > 2 and candidates[-1] - candidates[0] == len(candidates) - 1
    layers = f"{candidates[0]} to {candidates[-1]}" if in_a_row else ", ".join(map(str, candidates))
    return f"All candidate layers ({layers}) get a prompt, so there is nothing to search."
