"""What chosen layers are worth, looked up in the table of all subsets that subsets.py made.

Regret: how much accuracy, in points, the best set of that size in the table is above the chosen one. Percentile: 100 is
the best set of its size, 0 the worst. A choice is looked up in the table without the draw of the examples that it was
made on, so that a choice that fits the accidents of its own examples gains nothing by it; a choice made on a draw that
the table has not is looked up in each of the tables that lack one draw, so that all choices meet the same noise.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

Row = dict[str, Any]
LayerSet = tuple[int, ...]
Accuracies = dict[LayerSet, float]


def read_lines(path: Path) -> list[Row]:
    """The rows of a file, none if there is none; a last line that a killed process left unfinished is dropped."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def add_line(path: Path, row: Row) -> None:
    """Add a row, in place of a line that a killed process left unfinished; any number of processes may."""
    with FileLock(path.with_suffix(".lock")), path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(row) + "\n").encode())


def regret(accuracies: Accuracies, layers: Sequence[int]) -> float:
    """Points below the best of these sets."""
    return max(accuracies.values()) - accuracies[tuple(layers)]


def percentile(accuracies: Accuracies, layers: Sequence[int]) -> float:
    """Share of the other sets that are worse, ties half, in percent."""
    others = [value for one, value in accuracies.items() if one != tuple(layers)]
    own = accuracies[tuple(layers)]
    if not others:
        return 100.0
    return 100 * sum((value < own) + (value == own) / 2 for value in others) / len(others)


class SubsetTable:
    """Accuracies, in points, of sets of layers.

    Args:
        rows: of subsets.py.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._runs: dict[str, dict[LayerSet, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            self._runs[row["task"]][tuple(row["layers"])][row["seed"]] = 100 * row["accuracy"]
        self.tasks = list(self._runs)
        self.candidates = sorted({layer for sets in self._runs.values() for layers in sets for layer in layers})

    def draws(self, task: str, *sizes: int) -> list[int]:
        """The draws that every set of these sizes has; an easy draw would else pass for a good set."""
        of = [set(draws) for layers, draws in self._runs[task].items() if len(layers) in sizes]
        return sorted(set.intersection(*of)) if of else []

    def accuracies(self, task: str, size: int, draws: Sequence[int] | None = None) -> Accuracies:
        """Mean accuracy of every set of a size, by default over all draws that they share."""
        draws = self.draws(task, size) if draws is None else draws
        return {
            layers: float(np.mean([runs[draw] for draw in draws]))
            for layers, runs in self._runs[task].items()
            if len(layers) == size and draws
        }

    def rulers(self, task: str, size: int, draw: int) -> list[list[int]]:
        """The draws by which a choice made on `draw` is judged: all but its own, or all but each of them in turn."""
        known = self.draws(task, size)
        if len(known) < 2:
            return [known]
        return [[one for one in known if one != left] for left in ([draw] if draw in known else known)]

    def views(self, task: str, size: int, draw: int) -> list[Accuracies]:
        """The accuracies by each of the `rulers`."""
        return [self.accuracies(task, size, ruler) for ruler in self.rulers(task, size, draw)]

    def regret(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([regret(view, layers) for view in self.views(task, len(layers), draw)]))

    def percentile(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([percentile(view, layers) for view in self.views(task, len(layers), draw)]))

    def chance(self, task: str, size: int, draw: int) -> float:
        """The expected regret of a set drawn at random."""
        return float(
            np.mean([max(view.values()) - np.mean(list(view.values())) for view in self.views(task, size, draw)])
        )

    def above_all(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Points above prompts at all layers; not a number if the table has not all of them on the same draws."""
        size, everywhere = len(layers), len(self.candidates)
        if not set(self.draws(task, size)) <= set(self.draws(task, everywhere)):
            return float("nan")
        rulers = self.rulers(task, size, draw)
        own = [self.accuracies(task, size, ruler)[tuple(layers)] for ruler in rulers]
        others = [self.accuracies(task, everywhere, ruler)[tuple(self.candidates)] for ruler in rulers]
        return float(np.mean(np.subtract(own, others)))

    def noise(self) -> float:
        """Standard deviation of one run about its set's mean; not a number if no set was run twice.

        A draw of the examples makes all sets of a task better or worse; that is taken out; they all share it.
        """
        squares, freedom = 0.0, 0
        for task, sets in self._runs.items():
            for size in {len(layers) for layers in sets}:
                draws = self.draws(task, size)
                grid = np.array([[runs[draw] for draw in draws] for one, runs in sets.items() if len(one) == size])
                if min(grid.shape) > 1:
                    rest = grid - grid.mean(1, keepdims=True) - grid.mean(0) + grid.mean()
                    squares += float((rest**2).sum())
                    freedom += (grid.shape[0] - 1) * (grid.shape[1] - 1)
        return (squares / freedom) ** 0.5 if freedom else float("nan")

    def best_of_one_run(self, task: str, size: int) -> dict[int, LayerSet]:
        """The best set of each draw: what a search would choose that trained every set once, to the end."""
        return {
            draw: max(one, key=one.__getitem__)
            for draw in self.draws(task, size)
            for one in [self.accuracies(task, size, [draw])]
        }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of them is constant."""
    ranks = [
        np.array([np.mean([(b < a) + (b == a) / 2 for b in values]) for a in values]) for values in (first, second)
    ]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
