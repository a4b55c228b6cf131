"""The searchers: one table with their properties, and one file each.

To add a searcher, add a row to `SEARCHERS` and `searchers/NAME.py` with a function `find_layers(problem)`, which takes
a `SearchProblem`, trains networks if it needs any, and returns `Findings`. A searcher that learns gates in another way
than DARTS passes a `GateSampler` to `SPTSearchTrainer`; see gumbel.py.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sptune.errors import InputError

if TYPE_CHECKING:
    from sptune.search.problem import Findings, SearchProblem

# Half of the examples are held out, and half of those confirm that the layers found are better than evenly spaced
# ones. 500 of them show differences of a few points of accuracy; the best and the worst pair of layers are hardly
# further apart.
MIN_EXAMPLES = 2000

# How prompt layers are selected with a trained supernet; see selection_criteria.py.
SELECTION_CRITERIA = ("gates", "perturbation", "sets", "greedy")

_GATES = ("gate_learning_rate", "gate_interval", "warmup_ratio")
_CONSISTENCY = ("consistency", "consistency_weight", "mask_probability", "mixed_level_weight")


@dataclass(frozen=True)
class Searcher:
    """The properties of a searcher.

    Attributes:
        fixed: whether the name fixes the layers, so that there is nothing to search.
        trained: whether it trains networks.
        min_examples: with fewer training examples it trains none.
        min_spare: with fewer candidates left over it trains none.
        criteria: the selection criteria that its trained supernet allows, the default first; empty without a supernet.
        settings: the fields of `SearchConfig` that have an effect with this searcher and not with all.
        relaxed: whether its supernet has gates between 0 and 1 that are independent of each other, as a threshold and
            `visibility="always"` require.
        max_sets: the largest number of sets of layers that it searches; None without a limit.
    """

    fixed: bool = False
    trained: bool = True
    min_examples: int = 0
    min_spare: int = 0
    criteria: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    relaxed: bool = False
    max_sets: int | None = None

    def trains(self, examples: int, spare: int) -> bool:
        """Whether it trains networks.

        Args:
            examples: number of training examples.
            spare: by how much the candidate layers outnumber the prompt layers to be found.
        """
        return self.trained and examples >= self.min_examples and spare >= self.min_spare


_DISCRETE = ("sets", "greedy", "perturbation")

SEARCHERS = {
    "auto": Searcher(min_examples=MIN_EXAMPLES, min_spare=1, criteria=_DISCRETE),
    "darts": Searcher(criteria=SELECTION_CRITERIA, settings=_GATES, relaxed=True),
    "exhaustive": Searcher(max_sets=100),
    "fair": Searcher(criteria=_DISCRETE),
    "gumbel": Searcher(criteria=SELECTION_CRITERIA, settings=_GATES, relaxed=True),
    "halving": Searcher(),
    "l0": Searcher(criteria=SELECTION_CRITERIA, settings=_GATES, relaxed=True),
    # Generators of dropped layers stop learning early, so their held-out losses say nothing.
    "progressive": Searcher(criteria=("gates",), settings=_GATES, relaxed=True),
    "random": Searcher(trained=False),
    "sampled": Searcher(criteria=("gates", "sets", "greedy"), settings=_GATES),
    "spaced": Searcher(trained=False),
    "spt_darts": Searcher(criteria=SELECTION_CRITERIA, settings=(*_CONSISTENCY, *_GATES), relaxed=True),
    "all": Searcher(fixed=True, trained=False),
    "middle": Searcher(fixed=True, trained=False),
    "first": Searcher(fixed=True, trained=False),
}
FIXED_SETTINGS = tuple(name for name, searcher in SEARCHERS.items() if searcher.fixed)


def check_sets(searcher: str, size: int, candidates: int) -> None:
    """Refuse a search among more sets than the searcher takes.

    Args:
        searcher: its name.
        size: layers in a set.
        candidates: how many layers there are to choose from.

    Raises:
        InputError: there are more.
    """
    count, most = math.comb(candidates, size), SEARCHERS[searcher].max_sets
    if most is not None and count > most:
        raise InputError(
            f"searcher={searcher!r} would train {count} networks for {size} of {candidates} layers, more than {most}; "
            "choose fewer layers or candidates, or another searcher."
        )


def load_searcher(name: str) -> Callable[[SearchProblem], Findings]:
    """The function `find_layers` of a searcher's file."""
    return importlib.import_module(f"{__name__}.{name}").find_layers
