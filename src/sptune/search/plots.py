"""Pictures of a search: gates or losses over time, and the final scores, with the chosen layers marked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sptune.errors import InputError
from sptune.whole_files import expanded

FORMATS = (".png", ".svg")
PASSED_OVER = "#9aa0a6"
INK = "#30343a"

# Beyond this many lines, names beside all of them no longer fit; the right-hand picture names the layers then.
MAX_NAMES = 12
MAX_LISTED = 6


def plot_search(
    history: Sequence[Mapping[str, Any]],
    candidate_layers: Sequence[int],
    prompt_layers: Sequence[int],
    scores: Sequence[float],
    score_name: str,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw gates or losses over the steps, and beside them the final scores; chosen layers are in color.

    Args:
        history: entries in order of steps, with "step" and either "gates" (one for each candidate) and "gate_loss"
            (None in steps that update no gate), or "losses" (held-out, one for each candidate, None if not trained),
            or "loss" (of the training).
        candidate_layers: layer index of each gate or loss.
        prompt_layers: the layers chosen.
        scores: one for each candidate, by which the layers were selected.
        score_name: the meaning of the scores.
        path: where to write the picture, as PNG or SVG by its suffix; None not to write it.

    Raises:
        InputError: the history is empty, or the path has another suffix.
    """
    if not history:
        raise InputError("There is nothing to draw: the history of the search is empty.")
    place = None if path is None else expanded(path)
    if place is not None and place.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: pictures are written as {' or '.join(FORMATS)}; give a path that ends so.")
    colors = _layer_colors(candidate_layers, prompt_layers)
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    over_time, at_the_end = figure.subplots(1, 2, width_ratios=(1.7, 1))
    if "loss" in history[0]:
        _draw_loss(over_time, history)
    else:
        _draw_lines(over_time, history, candidate_layers, prompt_layers, colors)
    _draw_scores(at_the_end, scores, score_name, candidate_layers, prompt_layers, colors)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place)
    return figure


def _layer_colors(candidate_layers: Sequence[int], prompt_layers: Sequence[int]) -> dict[int, str]:
    """Gray for layers passed over; chosen ones are colored by depth."""
    palette = matplotlib.colormaps["viridis"]
    chosen = sorted(prompt_layers)
    depth = {layer: 0.8 * (place + 0.5) / len(chosen) for place, layer in enumerate(chosen)}
    return {layer: to_hex(palette(depth[layer])) if layer in depth else PASSED_OVER for layer in candidate_layers}


def _draw_loss(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    losses = _running_means([entry["loss"] for entry in history])
    axes.plot([entry["step"] for entry in history], losses, color=INK, linewidth=1.8)
    axes.set(
        xlim=(0, history[-1]["step"]), ylim=_limits(losses, math.inf), xlabel="search step", ylabel="training loss"
    )
    axes.set_title("Training loss of all layers", loc="left", color=INK, fontsize=12)
    tidy(axes)


def _draw_lines(
    axes: Axes,
    history: Sequence[Mapping[str, Any]],
    candidate_layers: Sequence[int],
    prompt_layers: Sequence[int],
    colors: Mapping[int, str],
) -> None:
    last_step = history[-1]["step"]
    gated = "gates" in history[0]
    lines = []
    for place, layer in enumerate(candidate_layers):
        values = [(entry["step"], entry["gates" if gated else "losses"][place]) for entry in history]
        points = [(step, value) for step, value in values if value is not None]
        line = [value for _, value in points]
        lines.append(line)
        chosen = layer in prompt_layers
        axes.plot(
            [0, *(step for step, _ in points)],
            [*line[:1], *line] or [math.nan],
            color=colors[layer],
            linewidth=2.6 if chosen else 1.1,
            alpha=1.0 if chosen else 0.75,
            zorder=3 if chosen else 2,
        )
    # Gates may learn only every few steps, so later steps may have no such loss, either.
    warmup = next((at for at, entry in enumerate(history) if entry.get("gate_loss") is not None), len(history))
    low, high = _limits([value for line in lines for value in line], 1.0 if gated else math.inf)
    if gated and 0 < warmup < len(history):
        axes.axvspan(0, history[warmup - 1]["step"], color="#f1f3f4", zorder=0)
        axes.text(
            history[warmup - 1]["step"] / 2, high - 0.03 * (high - low), "weights only",
            ha="center", va="top", color="#5f6368", fontsize=9,
        )  # fmt: skip
    named = list(candidate_layers) if len(candidate_layers) <= MAX_NAMES else sorted(prompt_layers)
    if len(named) <= MAX_NAMES:
        places = {layer: list(candidate_layers).index(layer) for layer in named}
        ends = {layer: lines[place][-1] for layer, place in places.items() if lines[place]}
        _name_lines(axes, ends, last_step, (low, high), prompt_layers, colors)
    axes.set(xlim=(0, last_step), ylim=(low, high), xlabel="search step", ylabel="gate" if gated else "held-out loss")
    title = "Gates over time" if gated else "Held-out loss by layer"
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    tidy(axes)


def _name_lines(
    axes: Axes,
    ends: Mapping[int, float],
    last_step: int,
    limits: tuple[float, float],
    prompt_layers: Sequence[int],
    colors: Mapping[int, str],
) -> None:
    """Write each layer's name beside the end of its line, moved apart where names would overlap."""
    gap = 0.052 * (limits[1] - limits[0])
    ranked = sorted(ends, key=lambda layer: ends[layer])
    heights: list[float] = []
    for layer in ranked:
        heights.append(max(ends[layer], heights[-1] + gap) if heights else ends[layer])
    overshoot = max(heights[-1] - (limits[1] - gap / 2), 0.0)
    for place in reversed(range(len(heights))):
        heights[place] -= overshoot
        if place and heights[place] - heights[place - 1] >= gap + overshoot:
            break
    for layer, height in zip(ranked, heights, strict=True):
        chosen = layer in prompt_layers
        axes.annotate(
            f"layer {layer}",
            (last_step, height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colors[layer] if chosen else "#5f6368",
            fontsize=10 if chosen else 9,
            fontweight="bold" if chosen else "normal",
            annotation_clip=False,
        )


def _running_means(losses: Sequence[float]) -> list[float]:
    """Means over as many of the last losses as are a tenth of all."""
    width = max(1, len(losses) // 10)
    windows = (losses[max(0, end - width) : end] for end in range(1, len(losses) + 1))
    return [sum(window) / len(window) for window in windows]


def _draw_scores(
    axes: Axes,
    scores: Sequence[float],
    score_name: str,
    candidate_layers: Sequence[int],
    prompt_layers: Sequence[int],
    colors: Mapping[int, str],
) -> None:
    places = range(len(candidate_layers))
    color = [colors[layer] for layer in candidate_layers]
    if max(scores) < 0:  # losses, whose differences bars from 0 would not show
        axes.scatter(places, scores, color=color, s=60)
        axes.set_ylim(*_limits(scores, 0.0))
    else:
        axes.bar(places, scores, color=color, width=0.72)
    every = max(1, -(-len(candidate_layers) // MAX_NAMES))
    shown = [place for place in places if place % every == 0]
    axes.set_xticks(shown, [str(candidate_layers[place]) for place in shown])
    axes.set(xlabel="layer", ylabel=score_name)
    if min(scores) >= 0:
        axes.set_ylim(0, max(1, *scores))
    listed = ", ".join(str(layer) for layer in sorted(prompt_layers))
    if len(prompt_layers) > MAX_LISTED:
        title = f"Chosen: {len(prompt_layers)} of {len(candidate_layers)} layers"
    else:
        title = f"Chosen: layer{'s' if len(prompt_layers) > 1 else ''} {listed}"
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    tidy(axes)
    axes.grid(visible=False, axis="x")


def _limits(values: Sequence[float], most: float) -> tuple[float, float]:
    """Bounds of an axis: around the values, at least 0.1 apart, not below 0 unless a value is, and at most `most`.

    What diverged, and is infinite, lies beyond them.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = max(0.08 * (high - low), (0.1 - (high - low)) / 2, 0.01)
    return low - room if low < 0 else max(low - room, 0.0), min(high + room, most)


def tidy(axes: Axes) -> None:
    """The look that all pictures share."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bdc1c6")
    axes.tick_params(colors="#5f6368", labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(visible=True, axis="y", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
