"""First-order DARTS (Liu, Simonyan and Yang, 2019): gates and weights learn on different splits."""

from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.problem import Findings, SearchProblem


def find_layers(problem: SearchProblem) -> Findings:
    """Train all gates and all weights together."""
    return problem.train_supernet(SPTSearchTrainer)
