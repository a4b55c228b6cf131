"""SPT-DARTS (method section 4): DARTS with architecture consistency and the mixed-level gate gradient."""

from sptune.search.gate_trainer import SPTSearchTrainer
from sptune.search.problem import Findings, SearchProblem
from sptune.search.selection_criteria import READINGS

SELECTIONS = tuple(READINGS)


def search(problem: SearchProblem) -> Findings:
    """Train all gates and all weights together, each example twice under different layer masks."""
    return problem.train(SPTSearchTrainer)
