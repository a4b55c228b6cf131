"""Figures of training steps, from what benchmarks/speed.py measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def _measured(placement: str = "prepend") -> dict[str, Any]:
    file = "speed_added.json" if placement == "add" else "speed_cpu.json"
    return dict(json.loads((RESULTS / file).read_text(encoding="utf-8")))


def speed(placement: str, *words: str) -> str:
    """A table of ratios to LoRA, to the bare layers above and to the backbone, for each first prompt layer.

    Args:
        placement: of the prompts.
        words: of the setting's name, such as "RoBERTa-large shape, T = 128".
    """
    setting, measured = " ".join(words), _measured(placement)
    columns = (
        "first prompt layer",
        "step faster than LoRA r=8",
        "memory by LoRA's",
        "step by the bare layers above",
        "forward by the backbone's",
    )
    rows = [f"| {' | '.join(columns)} |", "| ---: | ---: | ---: | ---: | ---: |"]
    layers = sorted(int(name.rpartition("=")[2]) for name in measured["speedup_over_lora"] if name.startswith(setting))
    for layer in layers:
        names = ("speedup_over_lora", "memory_over_lora", "over_limit", "latency_over_backbone")
        values = [measured[name].get(f"{setting}, p = {layer}") for name in names]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        rows.append(f"| {layer} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def speed_ratio(name: str, layer: str, *words: str) -> str:
    """One of these ratios, such as `speed_ratio speedup_over_lora 12 RoBERTa-large shape, T = 128`."""
    setting = " ".join(words)
    return f"{_measured()[name][f'{setting}, p = {layer}']:.1f}"


def speed_tables() -> str:
    """All tables, as benchmarks/speed.py wrote them."""
    return (RESULTS / "speed_cpu.md").read_text(encoding="utf-8")


FIGURES: dict[str, Callable[..., str]] = {"speed": speed, "speed_ratio": speed_ratio, "speed_tables": speed_tables}
