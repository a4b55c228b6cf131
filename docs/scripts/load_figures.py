"""Figures of the load test of the server, benchmarks/serving_load.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def load(name: str) -> str:
    """A table of both loads."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    columns = ["", "requests", "wrong", "lost", "failed (status 500)", "answers a second", "median, 99 % of answers"]
    rows = []
    for title in ("undisturbed", "disturbed"):
        one = results[title]
        times = ", ".join(f"{one['milliseconds'][quantile] / 1000:.1f} s" for quantile in ("50", "99"))
        counts = [one["requests"], one["wrong"], one["lost"], sum(one["failed"].values()), one["answers_per_second"]]
        rows.append([title, *map(str, counts), times])
    return markdown_table(columns, rows)


FIGURES: dict[str, Callable[..., str]] = {"load": load}
