"""First-order DARTS (Liu, Simonyan and Yang, 2019): gates by the gate half, weights by the weight half."""

from sptune.search.gate_trainer import SPTSearchTrainer
from sptune.search.problem import Findings, SearchProblem
from sptune.search.selection_criteria import READINGS

SELECTIONS = tuple(READINGS)


def search(problem: SearchProblem) -> Findings:
    """Train all gates and all weights together."""
    return problem.train(SPTSearchTrainer)
