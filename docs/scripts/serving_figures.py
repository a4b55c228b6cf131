"""Figures of mixed batches and of the server, from what benchmarks/serving.py and serving_load.py measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_table import markdown_table
from serving import ADAPTERS, SETTINGS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
TITLES = {
    "add": "**`spt`**",
    "prepend": "`spt-prepend`",
    "lora": "LoRA r=8, `adapter_names`",
    "lora, one at a time": "LoRA r=8, one adapter at a time",
}


def _measured() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "serving.json").read_text(encoding="utf-8")))


def _rows() -> dict[tuple[str, str, int], dict[str, Any]]:
    """The rows by setting, method and number of adapters."""
    return {
        (one["name"], row["method"], row["adapters"]): row for one in _measured()["settings"] for row in one["rows"]
    }


def serving() -> str:
    """Time of a batch by that of the bare backbone, a line for each setting and method."""
    rows, lines = _rows(), []
    for setting in SETTINGS:
        for method, title in TITLES.items():
            own = [rows.get((setting, method, number)) for number in ADAPTERS]
            if any(own):
                lines.append([setting, title, *(f"{one['by_backbone']:.2f}" if one else "" for one in own)])
    return markdown_table(["setting", "method", *(f"adapters: {number}" for number in ADAPTERS)], lines)


def serving_ratio(method: str, *words: str) -> str:
    """A method's time with as many adapters as rows by the bare backbone's, such as `serving_ratio add MiniLM-L6`."""
    return f"{_with_all(method, ' '.join(words))['by_backbone']:.2f}"


def serving_rate(method: str, *words: str) -> str:
    """A method's tokens a second with as many adapters as rows by the bare backbone's."""
    return f"{1 / _with_all(method, ' '.join(words))['by_backbone']:.2f}"


def serving_times(method: str, other: str, *words: str) -> str:
    """A method's time with as many adapters as rows by another method's; `one-at-a-time` is LoRA's."""
    first, second = (
        _with_all(name.replace("one-at-a-time", "lora, one at a time"), " ".join(words)) for name in (method, other)
    )
    return f"{first['by_backbone'] / second['by_backbone']:.2f}"


def _with_all(method: str, setting: str) -> dict[str, Any]:
    return next(row for key, row in _rows().items() if key[0].startswith(setting) and key[1:] == (method, ADAPTERS[-1]))


def serving_machine() -> str:
    """The machine of the times."""
    machine = _measured()["machine"]
    return f"{machine['processor']}, {machine['threads']} thread, PyTorch {machine['torch']}, PEFT {machine['peft']}"


def serving_missing() -> str:
    """The settings of the benchmark without a row yet."""
    measured = {one["name"] for one in _measured()["settings"]}
    missing = [f"*{name}*" for name in SETTINGS if name not in measured]
    return f"**Not measured yet**: {'; '.join(missing)}." if missing else "All settings of the benchmark are measured."


def serving_memory() -> str:
    """What a hundred loaded adapters cost."""
    rows = [
        [
            TITLES[row["method"]].partition(",")[0],
            str(row["adapters"]),
            f"{row['megabytes']:.0f}",
            f"{row['megabytes_of_weights']:.1f}",
            f"{row['seconds_each']:.3f}",
            f"{row['seconds_last']:.3f}",
        ]
        for row in _measured()["memory"]
    ]
    columns = ["method", "adapters", "memory, MB", "of it weights, MB", "s to load one", "s for each of the last ten"]
    return markdown_table(columns, rows)


def load(name: str) -> str:
    """A table of both loads of the server."""
    results = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    columns = ["", "requests", "wrong", "lost", "failed (status 500)", "answers a second", "median, 99 % of answers"]
    rows = []
    for title in ("undisturbed", "disturbed"):
        one = results[title]
        times = ", ".join(f"{one['milliseconds'][quantile] / 1000:.1f} s" for quantile in ("50", "99"))
        counts = [one["requests"], one["wrong"], one["lost"], sum(one["failed"].values()), one["answers_per_second"]]
        rows.append([title, *map(str, counts), times])
    return markdown_table(columns, rows)


FIGURES: dict[str, Callable[..., str]] = {
    "load": load,
    "serving": serving,
    "serving_machine": serving_machine,
    "serving_memory": serving_memory,
    "serving_missing": serving_missing,
    "serving_rate": serving_rate,
    "serving_ratio": serving_ratio,
    "serving_times": serving_times,
}
