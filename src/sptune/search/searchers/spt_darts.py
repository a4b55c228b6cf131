"""SPT-DARTS (method section 4): DARTS with architecture consistency and the mixed-level gate gradient."""

from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.problem import Findings, SearchProblem


def find_layers(problem: SearchProblem) -> Findings:
    """Train all gates and all weights together, each example twice under different layer masks."""
    return problem.train_supernet(SPTSearchTrainer)
