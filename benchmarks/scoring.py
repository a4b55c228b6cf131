"""What chosen layers are worth, looked up in the table of all subsets that subsets.py made.

Regret: how much accuracy, in points, the best set of that size in the table is above the chosen one. Percentile: 100 is
the best set of its size, 0 the worst. A choice is looked up in the table without the draw of the examples that it was
made on, so that a choice that fits the accidents of its own examples gains nothing by it. A choice made on a draw that
the table has not is looked up in each of the tables that lack one draw, so that all choices meet the same noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sptune.compare.summary import interval, mean_of_means, t_interval

Row = dict[str, Any]
LayerSet = tuple[int, ...]
Accuracies = dict[LayerSet, float]
# Values by task, by the draw that layers were chosen on, and by the draw in which they were looked up.
Cells = Mapping[str, Mapping[int, Mapping[int, float]]]


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

    def views(self, task: str, size: int, draw: int) -> list[Accuracies]:
        """The accuracies as they are for a choice made on `draw`: without it, or without each of the others in turn."""
        known = self.draws(task, size)
        rulers = [[one for one in known if one != left] for left in ([draw] if draw in known else known)]
        return [self.accuracies(task, size, ruler or known) for ruler in rulers]

    def regret(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([regret(view, layers) for view in self.views(task, len(layers), draw)]))

    def percentile(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([percentile(view, layers) for view in self.views(task, len(layers), draw)]))

    def chance(self, task: str, size: int) -> float:
        """The expected regret of a set drawn at random."""
        views = [list(view.values()) for draw in self.draws(task, size) for view in self.views(task, size, draw)]
        return float(np.mean([max(view) - np.mean(view) for view in views]))

    def by_draw(self, task: str, layers: Sequence[int], draw: int) -> dict[int, float]:
        """Accuracy of layers chosen on `draw`, in each of the table's other draws."""
        runs = self._runs[task][tuple(layers)]
        known = self.draws(task, len(layers))
        return {one: runs[one] for one in known if one in runs and (one != draw or known == [draw])}

    def by_draw_of_all(self, task: str, size: int) -> dict[int, float]:
        """Mean accuracy of all sets of a size, in each of the table's draws."""
        return {
            one: float(np.mean(list(self.accuracies(task, size, [one]).values()))) for one in self.draws(task, size)
        }

    def noise(self) -> float:
        """Standard deviation of one run about its set's mean; not a number if no set was run twice.

        What a draw of the examples does to all sets of a task alike is taken out.
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
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def gains(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """How much more accurate, in the draws that both have."""
    return {draw: value - other[draw] for draw, value in own.items() if draw in other}


def crossed_interval(cells: Cells, *, over_tasks: bool) -> tuple[float, float]:
    """95 % interval of the mean of looked-up gains.

    Both the draw that a choice was made on and those in which it was looked up are samples, and choices share the
    latter, so the variance of a task's mean is that of its rows plus that of its columns; a little too much, since both
    hold the noise of single cells. Degrees of freedom are Satterthwaite's.

    Args:
        cells: gains by task, by the draw of the choice, and by the draw of the look-up.
        over_tasks: the interval is for another task, not for other draws of these.
    """
    middle = mean_of_cells(cells)
    if over_tasks:
        return interval({task: [mean_of_cells({task: rows})] for task, rows in cells.items()})
    parts = []
    for rows in cells.values():
        columns = sorted({draw for row in rows.values() for draw in row})
        by_row = [np.mean(list(row.values())) for row in rows.values()]
        by_column = [np.mean([row[draw] for row in rows.values() if draw in row]) for draw in columns]
        if min(len(by_row), len(by_column)) < 2:
            return math.nan, math.nan
        parts += [(np.var(one, ddof=1) / len(one) / len(cells) ** 2, len(one) - 1) for one in (by_row, by_column)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return middle, middle
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return t_interval(middle, math.sqrt(variance), freedom)


def mean_of_cells(cells: Cells) -> float:
    """The mean over tasks of the means over choices; not a number where a choice was not looked up."""
    return mean_of_means(
        {
            task: [float(np.mean(list(row.values()))) if row else math.nan for row in rows.values()]
            for task, rows in cells.items()
        }
    )


def in_words(cells: Cells, *, over_tasks: bool) -> str:
    """A mean and its interval; see `crossed_interval`."""
    middle = mean_of_cells(cells)
    if math.isnan(middle):
        return ""
    low, high = crossed_interval(cells, over_tasks=over_tasks)
    return f"{middle:.2f}" if math.isnan(low) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
