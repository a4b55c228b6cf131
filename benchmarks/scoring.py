"""Scores chosen layers by their accuracy in the table of all subsets that subsets.py writes.

Regret is the difference in accuracy, in points, between the best set of the same size and the chosen one. Percentile is
100 for the best set of its size and 0 for the worst. A "draw" is a seed that draws the training examples. The accuracy
of layers chosen on one draw is looked up on the other draws of the table, so that overfitting to the examples of that
draw does not pay. For a draw that the table does not have, the table is used without each of its draws in turn, so that
all choices are scored with the same noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sptune.compare.summary import interval, mean_of_means, t_interval
from sptune.search.layer_selection import evenly_spaced

Row = dict[str, Any]
LayerSet = tuple[int, ...]
Accuracies = dict[LayerSet, float]
# Values by task, by the draw of the choice, and by the draw of the look-up.
Cells = Mapping[str, Mapping[int, Mapping[int, float]]]


def regret(accuracies: Accuracies, layers: Sequence[int]) -> float:
    """Points of accuracy below the best of these sets."""
    return max(accuracies.values()) - accuracies[tuple(layers)]


def percentile(accuracies: Accuracies, layers: Sequence[int]) -> float:
    """The percentage of the other sets that are worse; ties count half."""
    others = [value for one, value in accuracies.items() if one != tuple(layers)]
    own = accuracies[tuple(layers)]
    if not others:
        return 100.0
    return 100 * sum((value < own) + (value == own) / 2 for value in others) / len(others)


class SubsetTable:
    """The accuracies of sets of layers, in points.

    Args:
        rows: the output of subsets.py.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._runs: dict[str, dict[LayerSet, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            self._runs[row["task"]][tuple(row["layers"])][row["seed"]] = 100 * row["accuracy"]
        self.tasks = list(self._runs)
        self.candidates = sorted({layer for sets in self._runs.values() for layers in sets for layer in layers})

    def draws(self, task: str, *sizes: int) -> list[int]:
        """The draws that all sets of these sizes have, so that an easy draw does not favor some of them."""
        of = [set(draws) for layers, draws in self._runs[task].items() if len(layers) in sizes]
        return sorted(set.intersection(*of)) if of else []

    def accuracies(self, task: str, size: int, draws: Sequence[int] | None = None) -> Accuracies:
        """The mean accuracy of every set of a size, by default over all common draws."""
        draws = self.draws(task, size) if draws is None else draws
        return {
            layers: float(np.mean([runs[draw] for draw in draws]))
            for layers, runs in self._runs[task].items()
            if len(layers) == size and draws
        }

    def views(self, task: str, size: int, draw: int) -> list[Accuracies]:
        """The accuracies that score a choice made on `draw`: without that draw, or without each other in turn."""
        known = self.draws(task, size)
        kept = [[one for one in known if one != omitted] for omitted in ([draw] if draw in known else known)]
        return [self.accuracies(task, size, draws or known) for draws in kept]

    def regret(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([regret(view, layers) for view in self.views(task, len(layers), draw)]))

    def percentile(self, task: str, layers: Sequence[int], draw: int) -> float:
        """Of layers chosen on a draw of the examples."""
        return float(np.mean([percentile(view, layers) for view in self.views(task, len(layers), draw)]))

    def chance(self, task: str, size: int) -> float:
        """The expected regret of a random set."""
        views = [list(view.values()) for draw in self.draws(task, size) for view in self.views(task, size, draw)]
        return float(np.mean([max(view) - np.mean(view) for view in views]))

    def by_draw(self, task: str, layers: Sequence[int], draw: int) -> dict[int, float]:
        """The accuracy of layers chosen on `draw`, on each of the other draws of the table."""
        runs = self._runs[task][tuple(layers)]
        known = self.draws(task, len(layers))
        return {one: runs[one] for one in known if one in runs and (one != draw or known == [draw])}

    def by_draw_of_all(self, task: str, size: int) -> dict[int, float]:
        """The mean accuracy of all sets of a size, on each draw of the table."""
        return {
            one: float(np.mean(list(self.accuracies(task, size, [one]).values()))) for one in self.draws(task, size)
        }

    def noise(self) -> float:
        """The standard deviation of a run around the mean of its set; NaN if no set has two runs.

        The effect of a draw on all sets of a task is removed.
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

    def by_size(self, task: str, size: int, sizes: Sequence[int]) -> tuple[float, float, float]:
        """The accuracy of sets of a size: the mean of all, evenly spaced layers, the best by the other draws.

        Args:
            task: the task.
            size: the number of layers.
            sizes: all numbers of layers that are compared; only draws that they share count.
        """
        draws = self.draws(task, *sizes)
        every = self.accuracies(task, size, draws)
        best = []
        for draw in draws:
            others = self.accuracies(task, size, [one for one in draws if one != draw])
            best.append(self.accuracies(task, size, [draw])[max(others, key=others.__getitem__)])
        spaced = every[tuple(evenly_spaced(self.candidates, size))]
        return float(np.mean(list(every.values()))), spaced, float(np.mean(best))

    def best_of_one_run(self, task: str, size: int) -> dict[int, LayerSet]:
        """The best set of each draw: the choice of a search that trains every set once."""
        return {
            draw: max(one, key=one.__getitem__)
            for draw in self.draws(task, size)
            for one in [self.accuracies(task, size, [draw])]
        }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of the two is constant."""
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def gains(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """The difference in accuracy on the draws that both have."""
    return {draw: value - other[draw] for draw, value in own.items() if draw in other}


def crossed_interval(cells: Cells, *, over_tasks: bool) -> tuple[float, float]:
    """The 95 % interval of the mean gain.

    The draws of the choices and the draws of the look-ups are both samples, and all choices share the latter. So the
    variance of the mean of a task is that of its rows plus that of its columns. This is slightly too large, because
    both include the noise of single cells. Degrees of freedom are Satterthwaite's.

    Args:
        cells: gains by task, by the draw of the choice, and by the draw of the look-up.
        over_tasks: whether the interval is for other tasks instead of other draws of the same tasks.
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
    """The mean over tasks of the means over choices; NaN if a choice has no look-up."""
    return mean_of_means(
        {
            task: [float(np.mean(list(row.values()))) if row else math.nan for row in rows.values()]
            for task, rows in cells.items()
        }
    )


def in_words(cells: Cells, *, over_tasks: bool) -> str:
    """The mean with its interval; see `crossed_interval`."""
    middle = mean_of_cells(cells)
    if math.isnan(middle):
        return ""
    low, high = crossed_interval(cells, over_tasks=over_tasks)
    return f"{middle:.2f}" if math.isnan(low) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
