"""Comparing prompts with other ways to adapt a frozen model: methods on tasks with seeds, with equal conditions."""

from typing import TYPE_CHECKING

from sptune.lazy_names import lazy_names

if TYPE_CHECKING:
    from sptune.compare.comparison import Comparison, compare
    from sptune.compare.methods import METHODS
    from sptune.compare.study import Study

__all__ = ["METHODS", "Comparison", "Study", "compare"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "METHODS": "sptune.compare.methods",
        "Comparison": "sptune.compare.comparison",
        "Study": "sptune.compare.study",
        "compare": "sptune.compare.comparison",
    },
)
