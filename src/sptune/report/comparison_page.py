"""The page of a comparison of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sptune.report.charts import cost_chart, difference_chart
from sptune.report.page import number, page

# Titles of the columns with their formats, by their names in summary.json.
COSTS = {
    "parameters": ("parameters", ",.0f"),
    "seconds": ("seconds", ",.1f"),
    "memory": ("memory, bytes", ",.0f"),
    "adapter_bytes": ("saved, bytes", ",.0f"),
    "runs": ("runs", "d"),
    "failed": ("failed", "d"),
}


def comparison_page(name: str, lines: Sequence[Mapping[str, Any]], against: str, version: str) -> str:
    """The page of a comparison, as HTML.

    Args:
        name: of the comparison.
        lines: the content of summary.json.
        against: the method that differences are to.
        version: of sptune.
    """
    begun = [line for line in lines if line["runs"] or line["failed"]]
    tasks = list(dict.fromkeys(task for line in begun for task in line["scores"]))
    charts = [
        cost_chart(begun, "parameters", "trained parameters without the head", against),
        cost_chart(begun, "seconds", "seconds of search and training", against),
    ]
    runs = sum(line["runs"] for line in begun)
    waiting = [line["method"] for line in lines if line not in begun]
    counted: Mapping[str, float] = next((line["scores"] for line in begun if line["method"] == against), {})
    remarks = [f"Without a run: {', '.join(waiting)}."] if waiting else []
    if counted and len(counted) < len(tasks):
        remarks.append(f"Means, deviations and costs are over the tasks that {against} has done: {', '.join(counted)}.")
    return page(
        "comparison.html.j2",
        kind="Comparison",
        title=name,
        version=version,
        remarks=remarks,
        sentence=f"{len(begun)} methods were compared with {against} as the reference on "
        f"{', '.join(tasks) or 'no task yet'}, in {runs:,} runs.",
        against=against,
        columns=_columns(tasks),
        rows=[_row(place, line, tasks) for place, line in enumerate(lines) if line in begun],
        score_figures=[figure for figure in charts if figure],
        differences=difference_chart(begun, against),
        wins=_wins(begun, against),
    )


def _columns(tasks: Sequence[str]) -> list[dict[str, Any]]:
    titles = [*tasks, *(["mean"] if len(tasks) > 1 else []), "sd over seeds", "difference"]
    titles += [title for title, _ in COSTS.values()]
    return [{"title": "method", "numeric": False}, *({"title": title, "numeric": True} for title in titles)]


def _row(place: int, line: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """A row of the table; `place` is that of the line in summary.json."""
    cells = [{"text": line["method"]}]
    cells += [_cell(line["scores"].get(task), ".4f", f"{place}.scores.{task}") for task in tasks]
    cells += [_cell(line["mean"], ".4f", f"{place}.mean")] if len(tasks) > 1 else []
    cells.append(_cell(line["deviation"], ".4f", f"{place}.deviation"))
    interval = "" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
    cells.append({**_cell(line["difference"], "+.4f", f"{place}.difference"), "interval": interval})
    cells += [_cell(line[name], form, f"{place}.{name}") for name, (_, form) in COSTS.items()]
    return {"method": line["method"], "cells": cells}


def _cell(value: float | None, form: str, place: str) -> dict[str, Any]:
    return {"value": value, "text": number(value, form), "place": place, "interval": ""}


def _wins(lines: Sequence[Mapping[str, Any]], against: str) -> list[list[str]]:
    """For each other method, on how many tasks that both have done it is better, equal and worse."""
    reference: dict[str, float] = next((line["scores"] for line in lines if line["method"] == against), {})
    rows = []
    for line in lines:
        shared = [task for task in line["scores"] if task in reference]
        ties = sum(math.isclose(line["scores"][task], reference[task], abs_tol=1e-12) for task in shared)
        above = sum(line["scores"][task] - reference[task] > 1e-12 for task in shared)
        if line["method"] != against:
            rows.append([line["method"], f"{above}", f"{ties}", f"{len(shared) - above - ties}"])
    return rows
