"""Pictures of a comparison: accuracy against what it costs, and the layers that were chosen."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from sptune.report.plots import INK, PASSED_OVER, tidy

COSTS = {
    "parameters": "trained parameters without the head",
    "seconds": "seconds of search and training, median over runs",
}
HIGHLIGHT = "#21908c"


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
    for line in lines:
        x = getattr(line, cost)
        if math.isnan(line.mean) or math.isnan(x):
            continue
        colour = HIGHLIGHT if line.method == against else INK
        spread = 0 if math.isnan(line.deviation) else 100 * line.deviation
        size = 7 if line.method == against else 5
        axes.errorbar(x, 100 * line.mean, yerr=spread, fmt="o", color=colour, markersize=size, elinewidth=0.8)
        axes.annotate(
            line.method, (x, 100 * line.mean), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour
        )
    if cost == "parameters":  # from none to millions
        axes.set_xscale("symlog", linthresh=1000)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=1000, base=10, subs=(1, 2, 5)))
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelrotation=30)
    axes.set(xlabel=COSTS[cost], ylabel="mean test score over tasks, %\n(bars: one standard deviation over seeds)")
    axes.margins(x=0.12, y=0.1)
    tidy(axes)
    figure.savefig(path)
    return figure


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
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="layer; in how many runs it got prompts", ylim=(len(labels) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", color=PASSED_OVER, alpha=0.3, linewidth=0.6)
    tidy(axes)
    figure.savefig(path)
    return figure
