"""Figures of training steps, from what benchmarks/speed.py measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_table import markdown_table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def _measured(placement: str = "prepend") -> dict[str, Any]:
    file = "speed_added.json" if placement == "add" else "speed_cpu.json"
    return dict(json.loads((RESULTS / file).read_text(encoding="utf-8")))


RATIOS = {
    "speedup_over_lora": "step faster than LoRA r=8",
    "memory_over_lora": "memory by LoRA's",
    "over_limit": "step by the bare layers above",
    "latency_over_backbone": "forward by the backbone's",
}


def speed(placement: str, *words: str) -> str:
    """A table of ratios to LoRA, to the bare layers above and to the backbone, for each first prompt layer.

    Args:
        placement: of the prompts.
        words: of the setting's name, such as "RoBERTa-large shape, T = 128"; all settings if there is none.
    """
    measured, chosen = _measured(placement), " ".join(words)
    names = [name for name in measured["speedup_over_lora"] if name.startswith(chosen)]
    names.sort(key=lambda name: int(name.rpartition("=")[2]))
    names.sort(key=lambda name: _order(measured, name.rpartition(", p = ")[0]))
    head = [] if chosen else ["setting"]
    rows = []
    for name in names:
        setting, _, layer = name.rpartition(", p = ")
        cells = [f"{measured[ratio][name]:.2f}" if name in measured[ratio] else "" for ratio in RATIOS]
        rows.append([*([setting] if head else []), layer, *cells])
    return markdown_table([*head, "first prompt layer", *RATIOS.values()], rows)


def _order(measured: dict[str, Any], setting: str) -> int:
    """The place of a setting in the file."""
    return list(dict.fromkeys(name.rpartition(", p = ")[0] for name in measured["speedup_over_lora"])).index(setting)


def speed_ratio(name: str, layer: str, *words: str) -> str:
    """One of these ratios, such as `speed_ratio speedup_over_lora 12 RoBERTa-large shape, T = 128`."""
    setting = " ".join(words)
    return f"{_measured()[name][f'{setting}, p = {layer}']:.1f}"


def speed_span(name: str) -> str:
    """The lowest and the highest of these ratios."""
    values = _measured()[name].values()
    return f"{min(values):.2f} to {max(values):.2f}"


def speed_tables() -> str:
    """The times of all methods, as benchmarks/speed.py wrote them, without its list of ratios."""
    return (RESULTS / "speed_cpu.md").read_text(encoding="utf-8").partition("### Ratios")[0]


FIGURES: dict[str, Callable[..., str]] = {
    "speed": speed,
    "speed_ratio": speed_ratio,
    "speed_span": speed_span,
    "speed_tables": speed_tables,
}
