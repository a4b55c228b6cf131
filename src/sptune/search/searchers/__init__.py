"""The searchers, one a file. To add one is to add `searchers/NAME.py` with two things in it:

- `search(problem)`, which takes a `SearchProblem`, trains what it needs and returns `Findings`;
- `SELECTIONS`, the ways its trained search network can be read, its own first; empty if it leaves no such network.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sptune.search.problem import Findings, SearchProblem

NAMES = tuple(module.name for module in pkgutil.iter_modules(__path__))


def find_searcher(name: str) -> Callable[[SearchProblem], Findings]:
    """The function `search` of a searcher's file."""
    return importlib.import_module(f"{__name__}.{name}").search


def ways_to_read(name: str) -> tuple[str, ...]:
    """The `SELECTIONS` of a searcher's file."""
    return importlib.import_module(f"{__name__}.{name}").SELECTIONS
