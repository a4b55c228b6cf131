"""The charts of report pages, as Vega-Lite specifications that Altair makes and the page draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from sptune.report.page import number

# Colors that stand out on white and on black.
COLORS = ("#1f9e89", "#e8743b", "#8a7be0", "#d1a000", "#3f8fd9", "#d0589c", "#5aa02c", "#b5651d")
GRAY = "#9aa0a6"
# Points of a line; more of them only make the page large.
MAX_POINTS = 120
# Points of a cloud, each of which is drawn.
MAX_CLOUD = 500
# Beyond this many points, names beside all of them overlap; they appear on hover.
MAX_NAMES = 8


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader needs to understand it.

    Attributes:
        name: its id in the page.
        caption: what it shows.
        spec: the Vega-Lite specification.
        columns: titles of the table that holds the same figures, for who does not see the chart.
        rows: of that table.
    """

    name: str
    caption: str
    spec: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Training and validation loss over the steps; None if there is nothing to draw.

    Args:
        history: entries with "step" and "training_loss" or "validation_loss", in order of steps.
    """
    points = [
        {"step": entry["step"], "loss": entry[name], "data": name.removesuffix("_loss")}
        for name in ("training_loss", "validation_loss")
        for entry in thinned([entry for entry in history if _is_number(entry.get(name))])
    ]
    if not points:
        return None
    color = alt.Color("data:N", title=None).scale(domain=["training", "validation"], range=list(COLORS[:2]))
    chart = _lines(points, "loss:Q", "loss", color, [_tip("data"), _tip("step"), _tip("loss", ".4f")])
    rows = [[point["data"], f"{point['step']}", f"{point['loss']:.4f}"] for point in points]
    caption = "Loss over the steps of the final training: mean of the last steps on training data, all validation data."
    return Figure("learning-curves", caption, _spec(chart, caption), ["data", "step", "loss"], rows)


def search_curves(search: Mapping[str, Any]) -> Figure | None:
    """Gates or losses over the steps of a search; None if nothing was trained.

    Args:
        search: the content of search.json.
    """
    history, layers, chosen = search["history"], search["candidate_layers"], search["prompt_layers"]
    if not history:
        return None
    kind = next(name for name in ("gates", "losses", "loss") if name in history[0])
    shown = thinned(history)
    if kind == "loss":
        title, layers = "training loss", ["all"]
        points = [_point(entry["step"], "all", entry["loss"]) for entry in shown]
    else:
        title = "gate" if kind == "gates" else "held-out loss"
        points = [
            _point(entry["step"], layer, entry[kind][place]) for place, layer in enumerate(layers) for entry in shown
        ]
    points = [point for point in points if _is_number(point["value"])]
    names = [f"layer {layer}" for layer in layers]
    colors = layer_colors(layers, chosen if kind != "loss" else layers)
    color = alt.Color("layer:N", title=None).scale(domain=names, range=colors)
    chart = _lines(points, "value:Q", title, color, [_tip("layer"), _tip("step"), _tip("value", ".4f", title)])
    caption = f"The {title} of each candidate layer over the steps of the search; layers that were not chosen are gray."
    if kind == "loss":
        caption = "Training loss of all layers over the steps of the search."
    last = {point["layer"]: point["value"] for point in points}
    rows = [[name, f"{value:.4f}"] for name, value in last.items()]
    return Figure("search-curves", caption, _spec(chart, caption), ["layer", f"{title} at the end"], rows)


def layer_scores(search: Mapping[str, Any], score_name: str) -> Figure:
    """The score of each candidate layer, with the chosen ones in color.

    Args:
        search: the content of search.json.
        score_name: what the scores are.
    """
    layers, chosen = search["candidate_layers"], search["prompt_layers"]
    points = [
        # A score that is infinite or not a number is of networks that diverged or were not trained; JSON has neither.
        {"layer": layer, "score": score if _is_number(score) else None,
         "choice": "chosen" if layer in chosen else "not chosen"}
        for layer, score in zip(layers, search["scores"], strict=True)
    ]  # fmt: skip
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("score:Q", title=score_name),
            color=alt.Color("choice:N", title=None).scale(domain=["chosen", "not chosen"], range=[COLORS[0], GRAY]),
            tooltip=[_tip("layer"), _tip("score", ".4f"), _tip("choice")],
        )
    )
    caption = f"Score of each candidate layer: {score_name}."
    rows = [[f"{point['layer']}", number(point["score"]), str(point["choice"])] for point in points]
    return Figure("layer-scores", caption, _spec(chart, caption), ["layer", "score", "choice"], rows)


def cost_chart(lines: Sequence[Mapping[str, Any]], cost: str, title: str, against: str) -> Figure | None:
    """Mean score of each method, with its standard deviation over seeds, over what it costs; None without any.

    Args:
        lines: entries of summary.json.
        cost: "parameters" or "seconds".
        title: of the horizontal axis.
        against: the method that stands out.
    """
    few = len(lines) <= MAX_NAMES
    points = [
        {
            "method": line["method"], "cost": line[cost], "score": line["mean"], "deviation": line["deviation"] or 0.0,
            "low": line["mean"] - (line["deviation"] or 0.0), "high": line["mean"] + (line["deviation"] or 0.0),
            "reference": line["method"] == against,
            "name": line["method"] if few or line["method"] == against else "",
        }
        for line in lines
        if _is_number(line["mean"]) and _is_number(line[cost])
    ]  # fmt: skip
    if not points:
        return None
    x = alt.X("cost:Q", title=title, scale=alt.Scale(zero=True))
    if cost == "parameters":  # from none to millions
        most = max(point["cost"] for point in points)
        ticks = [0, *(10**power for power in range(3, 1 + math.ceil(math.log10(max(most, 1000)))))]
        axis = alt.Axis(values=ticks, labelExpr="format(datum.value, '~s')", labelOverlap=True)
        x = alt.X("cost:Q", title=title, scale=alt.Scale(type="symlog", constant=1000), axis=axis)
    y = alt.Scale(zero=False)
    color = alt.condition("datum.reference", alt.value(COLORS[1]), alt.value(COLORS[0]))
    base = alt.Chart(alt.Data(values=points)).encode(x=x, color=color)
    tips = [_tip("method"), _tip("cost", ",.4~f", title), _tip("score", ".4f", "mean score"), _tip("deviation", ".4f")]
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
        y=alt.Y("low:Q", title="mean score on test data", scale=y), y2="high:Q"
    )
    dots = base.mark_circle(size=110, opacity=1).encode(y=alt.Y("score:Q", scale=y), tooltip=tips)
    names = base.mark_text(align="left", dx=8, dy=-8, fontSize=11).encode(y=alt.Y("score:Q", scale=y), text="name:N")
    caption = f"Mean test score over tasks against {title}. Bars: one standard deviation over seeds."
    rows = [[point["method"], f"{point['cost']:,.4g}", f"{point['score']:.4f}"] for point in points]
    chart = alt.layer(bars, dots, names)
    return Figure(f"score-by-{cost}", caption, _spec(chart, caption, 340), ["method", title, "mean score"], rows)


def difference_chart(lines: Sequence[Mapping[str, Any]], against: str) -> Figure | None:
    """How much better than the reference each method is, with 95 % intervals; None without any."""
    points = [
        {name: line[name] for name in ("method", "difference", "low", "high")}
        for line in lines
        if line["method"] != against and _is_number(line["difference"])
    ]
    points.sort(key=lambda point: -point["difference"])
    if not points:
        return None
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("method:N", title=None, sort=[point["method"] for point in points])
    )
    tips = [_tip("method"), *(_tip(name, "+.4f") for name in ("difference", "low", "high"))]
    title = f"test score minus that of {against}"
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=GRAY, strokeDash=[4, 3]).encode(x="zero:Q")
    bars = base.mark_rule(color=COLORS[0], strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    dots = base.mark_circle(color=COLORS[0], size=110, opacity=1).encode(x="difference:Q", tooltip=tips)
    caption = f"Difference to {against} on the same tasks and seeds, with its 95 % interval (Student's t)."
    rows = [
        [point["method"], *("" if point[name] is None else f"{point[name]:+.4f}" for name in tuple(point)[1:])]
        for point in points
    ]
    chart = alt.layer(zero, bars, dots)
    columns = ["method", "difference", "low", "high"]
    return Figure("differences", caption, _spec(chart, caption, 40 + 26 * len(points)), columns, rows)


def number_chart(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Predicted against true numbers of test examples, with the line on which both are equal; None without any.

    Args:
        rows: of predictions.jsonl.
    """
    points = [{"true": row["label"], "predicted": row["prediction"]} for row in thinned(rows, MAX_CLOUD)]
    if not points:
        return None
    ends = [one(point[name] for point in points for name in ("true", "predicted")) for one in (min, max)]
    scale = alt.Scale(zero=False)
    x, y = (alt.X("true:Q", title="true", scale=scale), alt.Y("predicted:Q", title="predicted", scale=scale))
    line = alt.Chart(alt.Data(values=[{"true": end, "predicted": end} for end in ends])).mark_line(
        color=GRAY, strokeDash=[4, 3]
    )
    cloud = alt.Chart(alt.Data(values=points)).mark_circle(color=COLORS[0], size=50, opacity=0.6)
    tips = [_tip("true", ".4~g"), _tip("predicted", ".4~g")]
    chart = alt.layer(line.encode(x=x, y=y), cloud.encode(x=x, y=y, tooltip=tips))
    some = f"{len(points)} of {len(rows):,}" if len(points) < len(rows) else f"{len(points)}"
    caption = f"Predicted against true numbers of {some} test examples. On the dashed line both are equal."
    columns = [[f"{point['true']:.6g}", f"{point['predicted']:.6g}"] for point in points]
    return Figure("predicted-numbers", caption, _spec(chart, caption, 340), ["true", "predicted"], columns)


def layer_colors(layers: Sequence[Any], chosen: Sequence[Any]) -> list[str]:
    """A color for each layer: gray for those not chosen."""
    places = {layer: COLORS[place % len(COLORS)] for place, layer in enumerate(chosen)}
    return [places.get(layer, GRAY) for layer in layers]


def thinned(entries: Sequence[Any], most: int = MAX_POINTS) -> list[Any]:
    """At most so many of the entries, evenly spaced, the first and the last among them."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(place * (len(entries) - 1) / (most - 1))] for place in range(most)]


def _point(step: int, layer: Any, value: float | None) -> dict[str, Any]:
    return {"step": step, "layer": f"layer {layer}", "value": value}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _tip(field: str, form: str | None = None, title: str | None = None) -> alt.Tooltip:
    if form is None:
        return alt.Tooltip(f"{field}:N", title=title or field)
    return alt.Tooltip(f"{field}:Q", title=title or field, format=form)


def _lines(points: list[dict[str, Any]], y: str, title: str, color: alt.Color, tips: list[alt.Tooltip]) -> Any:
    """Lines whose points can be hovered over."""
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("step:Q", title="step"), y=alt.Y(y, title=title, scale=alt.Scale(zero=False)), color=color
    )
    return base.mark_line(strokeWidth=2) + base.mark_point(size=50, opacity=0, filled=True).encode(tooltip=tips)


def _spec(chart: Any, description: str, height: int = 280) -> dict[str, Any]:
    return chart.properties(width="container", height=height, description=description).to_dict()
