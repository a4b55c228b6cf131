"""Comparing prompts with other ways to adapt a frozen model: methods on tasks with seeds, with equal conditions."""

from sptune.compare.comparison import Comparison, compare
from sptune.compare.methods import METHODS
from sptune.compare.study import Study

__all__ = ["METHODS", "Comparison", "Study", "compare"]
