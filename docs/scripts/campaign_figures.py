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
    """How often runs and comparisons were killed, and how much of them was done again."""
    rows = [row for row in _rows(path) if "at_most" in row]
    lines = [
        [
            row["part"],
            str(row["kills"]),
            str(row["runs"]),
            *(_amount(row[name], row["unit"]) for name in ("done_again", "at_most")),
        ]
        for row in rows
    ]
    return markdown_table(["part", "kills", "folders", "most done again after a kill", "most allowed"], lines)


def killed_servers(path: Path = ROWS) -> str:
    """How often a server was killed, and what its clients got."""
    rows = [row for row in _rows(path) if "answers" in row]
    lines = [[row["part"], *(f"{row.get(name, 0):,}" for name in ("kills", "answers", "errors"))] for row in rows]
    return markdown_table(["part", "kills", "right answers", "requests that ended with an error"], lines)


def _amount(number: int, unit: str) -> str:
    return f"{number} {unit if number == 1 else unit + 's'}"


FIGURES: dict[str, Callable[..., str]] = {
    "damaged_inputs": damaged_inputs,
    "kills": kills,
    "killed_servers": killed_servers,
}

if __name__ == "__main__":
    given = Path(sys.argv[1])
    print(damaged_inputs(given), kills(given), killed_servers(given), sep="\n\n")
