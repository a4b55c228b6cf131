"""Figures of how costs grow, from what benchmarks/scale.py measured and benchmarks/scale_on_paper.py estimates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_table import markdown_table
from scale_on_paper import ASSUMPTIONS, BACKBONES, estimate

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
METHODS = ("prompts", "prompts, cached", "search", "LoRA")


def _rows(kind: str) -> list[dict[str, Any]]:
    lines = (RESULTS / "scale.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def _steps(axis: str) -> list[dict[str, Any]]:
    return sorted((row for row in _rows("step") if row["axis"] == axis), key=lambda row: row[axis])


def scale_step(axis: str) -> str:
    """Processor time and memory of a step by layers, width or length."""
    lines = [
        [
            f"{row[axis]:,}",
            *(f"{1000 * row['processor_seconds'][name]:.0f}" for name in METHODS),
            *(f"{row['memory_mb'][name]:.0f}" for name in METHODS),
        ]
        for row in _steps(axis)
    ]
    columns = [axis, *(f"{name}, ms" for name in METHODS), *(f"{name}, MB" for name in METHODS)]
    return markdown_table(columns, lines)


def scale_exponent(axis: str, *words: str) -> str:
    """The power of layers, width or length with which a step's processor time grows, from the first row to the last."""
    first, *_, last = _steps(axis)
    name = " ".join(words)
    times = last["processor_seconds"][name] / first["processor_seconds"][name]
    return f"{math.log(times) / math.log(last[axis] / first[axis]):.1f}"


def scale_adapters() -> str:
    """Processor time of a forward by the number of adapters in its batch."""
    lines = [
        [str(row["adapters"]), f"{1000 * row['processor_seconds']:.0f}", f"{row['adapter_weights'] * 4 / 1e3:.0f}"]
        for row in sorted(_rows("adapters"), key=lambda row: row["adapters"])
    ]
    return markdown_table(["adapters", "forward, ms", "an adapter, kB"], lines)


def scale_rows() -> str:
    """Processor time and memory of reading, checking and tokenizing data."""
    lines = [
        [f"{row['rows']:,}", f"{row['file_mb']:,.0f}"]
        + [f"{row['processor_seconds'][part]:.1f}" for part in ("read", "tokenize")]
        + [f"{row['memory_mb'][part]:,.0f}" for part in ("read", "tokenize")]
        for row in sorted(_rows("rows"), key=lambda row: row["rows"])
    ]
    return markdown_table(
        ["rows", "file, MB", "reading, s", "tokenizing, s", "memory to read, MB", "more to tokenize, MB"], lines
    )


def scale_bytes_per_row() -> str:
    """Bytes of memory for each row of the largest file while it is read."""
    row = max(_rows("rows"), key=lambda row: row["rows"])
    return f"{row['memory_mb']['read'] * 1e6 / row['rows']:,.0f}"


def scale_machine() -> str:
    """On what, and beside how much other load, the rows were measured."""
    rows = [*_rows("step"), *_rows("adapters"), *_rows("rows")]
    loads = [row["load"] for row in rows]
    kinds = sorted({f"PyTorch {row['torch']}, {row['capability']}, threads: {row['threads']}" for row in rows})
    return f"{'; '.join(kinds)}; load of the machine {min(loads)} to {max(loads)}"


def scale_paper() -> str:
    """The estimates for backbones of 7 and 70 billion weights."""
    estimates = [estimate(one) for one in BACKBONES]
    lines = [
        [name if name.startswith(("10^", "weights")) else f"{name}, GB", *(f"{one[name]:,.4g}" for one in estimates)]
        for name in estimates[0]
    ]
    return markdown_table(["", *(one.name for one in BACKBONES)], lines)


def scale_assumptions() -> str:
    """The assumptions of the estimates, as a list."""
    return "\n".join(f"- {one}" for one in ASSUMPTIONS)


FIGURES: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        scale_step,
        scale_exponent,
        scale_adapters,
        scale_rows,
        scale_bytes_per_row,
        scale_machine,
        scale_paper,
        scale_assumptions,
    )
}
