"""Pictures of a comparison: accuracy against what it costs, and the layers that were chosen."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from sptune.search.plots import INK, PASSED_OVER, tidy

COSTS = {
    "parameters": "trained parameters without the head",
    "seconds": "seconds of search and training, median over runs",
}
HIGHLIGHT = "#21908c"
# Where a point's name may stand, the best place first: how far away in points of print, to the right and up.
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
PLACES = [(distance, right, up) for distance in (4, 14, 24, 36, 50) for right, up in DIRECTIONS]


def plot_scores(lines: Sequence[Any], cost: str, against: str, path: str | os.PathLike[str]) -> Figure:
    """Draw the mean score of each method, with its standard deviation over seeds, over what it costs.

    Args:
        lines: the summary; methods without a mean over all tasks are left out.
        cost: "parameters" or "seconds".
        against: the method that stands out.
        path: where to write the picture, as PNG or SVG by its suffix.
    """
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [line for line in lines if not math.isnan(line.mean) and not math.isnan(getattr(line, cost))]
    points = {line.method: (getattr(line, cost), 100 * line.mean) for line in shown}
    for line in shown:
        color, bar, size = (HIGHLIGHT, HIGHLIGHT, 7) if line.method == against else (INK, PASSED_OVER, 5)
        spread = 0 if math.isnan(line.deviation) else 100 * line.deviation
        x, y = points[line.method]
        axes.errorbar(x, y, yerr=spread, fmt="o", color=color, markersize=size, elinewidth=0.8, ecolor=bar)
    if cost == "parameters":  # from none to millions
        axes.set_xscale("symlog", linthresh=1000)
        most = max((x for x, _ in points.values()), default=0)
        axes.minorticks_off()
        axes.set_xticks([0, *(10**power for power in range(3, 1 + math.ceil(math.log10(max(most, 1000)))))])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes.set_xlim(left=0)
    axes.set(xlabel=COSTS[cost], ylabel="mean test score over tasks, %\n(bars: one standard deviation over seeds)")
    axes.margins(x=0.12, y=0.1)
    tidy(axes)
    _name_points(axes, points, against)
    figure.savefig(path)
    return figure


def _name_points(axes: Any, points: Mapping[str, tuple[float, float]], against: str) -> None:
    """Write each point's name beside it, where neither points nor other names are; the reference's first."""
    figure = axes.figure
    figure.draw_without_rendering()  # only then is it known where in the picture things are
    renderer = figure.canvas.get_renderer()
    room = axes.get_window_extent(renderer)
    marks = {
        name: Bbox.from_extents(*[*axes.transData.transform(point)] * 2).padded(8) for name, point in points.items()
    }
    names: list[Bbox] = []
    for name in sorted(points, key=lambda one: one != against):
        label = axes.annotate(
            name,
            points[name],
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=HIGHLIGHT if name == against else INK,
            parse_math=False,  # between two dollar signs
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": PASSED_OVER, "shrinkA": 0, "shrinkB": 3},
        )
        label.set_in_layout(False)  # the axes shall stay where they are
        others = [*names, *(mark for other, mark in marks.items() if other != name)]
        boxes = [_box_at(label, place, renderer) for place in PLACES]
        covered = [sum(_common(box, one) for one in others) + _area(box) - _common(box, room) for box in boxes]
        best = covered.index(min(covered))
        names.append(_box_at(label, PLACES[best], renderer))


def _area(box: Bbox) -> float:
    return float(box.width * box.height)


def _common(one: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(one, other)
    return _area(both) if both else 0.0


def _box_at(label: Any, place: tuple[int, int, int], renderer: Any) -> Bbox:
    """Put a name somewhere; where in the picture it is then."""
    distance, right, up = place
    label.set(
        position=(distance * right, distance * up),
        horizontalalignment={1: "left", 0: "center", -1: "right"}[right],
        verticalalignment={1: "bottom", 0: "center", -1: "top"}[up],
    )
    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer).padded(2)


def searching(lines: Sequence[Any]) -> list[Any]:
    """The methods that chose layers themselves."""
    return [line for line in lines if line.searches and line.layers]


def plot_layers(lines: Sequence[Any], path: str | os.PathLike[str]) -> Figure:
    """Draw how often the methods that choose layers themselves, by a search or not, put prompts at each, by task.

    Args:
        lines: the summary; methods whose layers are given are left out.
        path: where to write the picture, as PNG or SVG by its suffix.
    """
    shown = searching(lines)
    tasks = sorted({task for line in shown for task in line.layers})
    figure = Figure(
        figsize=(8, 1.2 + 0.45 * max(len(tasks) * len(shown), 1)), dpi=150, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels: list[str] = []
    for line in shown:
        for task in tasks:
            for layer, times in line.layers.get(task, {}).items():
                axes.scatter(layer, len(labels), s=320 * times / max(line.runs / len(tasks), 1), color=HIGHLIGHT)
                axes.annotate(str(times), (layer, len(labels)), ha="center", va="center", fontsize=8, color="white")
            labels.append(task if len(shown) == 1 else f"{line.method}, {task}")
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set(xlabel="layer; in how many runs it got prompts", ylim=(len(labels) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", color=PASSED_OVER, alpha=0.3, linewidth=0.6)
    tidy(axes)
    figure.savefig(path)
    return figure
