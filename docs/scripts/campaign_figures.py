"""Figures of the reliability campaign, from the rows of `make campaign`; run as a script, it prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_table import markdown_table

ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "campaign.jsonl"


def _rows(path: Path = ROWS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def damaged_inputs(path: Path = ROWS) -> str:
    """How many generated inputs gave a result, and how many an error, by kind."""
    rows = [row for row in _rows(path) if "kills" not in row]
    lines = [[row["part"], *(f"{row.get(name, 0):,}" for name in ("results", "errors"))] for row in rows]
    total = [f"**{sum(row.get(name, 0) for row in rows):,}**" for name in ("results", "errors")]
    return markdown_table(["input", "results", "clear errors"], [*lines, ["**all**", *total]])


def kills(path: Path = ROWS) -> str:
    """How often runs were killed, and how many of their steps were done again."""
    rows = [row for row in _rows(path) if "kills" in row]
    lines = [
        [row["part"], *(str(row[name]) for name in ("kills", "runs", "steps_done_again", "interval"))] for row in rows
    ]
    return markdown_table(["part", "kills", "runs", "most steps done again", "steps between checkpoints"], lines)


FIGURES: dict[str, Callable[..., str]] = {"damaged_inputs": damaged_inputs, "kills": kills}

if __name__ == "__main__":
    given = Path(sys.argv[1])
    print(damaged_inputs(given), kills(given), sep="\n\n")
