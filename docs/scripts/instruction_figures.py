"""Figures of prompts and LoRA on instruction data, from the rows of benchmarks/instruction.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from instruction import SEEDS
from markdown_table import markdown_table
from sptune.runs.output_folder import read_json_lines

ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "instruction.jsonl"
TITLES = {"zero-shot": "no training", "lora": "LoRA r=8, query and value", "spt": "**`spt`**"}
Row = dict[str, Any]


def instruction_table() -> str:
    """Means over the seeds of each method that has a row."""
    lines = []
    for method, title in TITLES.items():
        rows = list(_runs(method).values())
        if rows:
            rate = rows[0]["learning_rate"]
            cells = [f"{_mean(rows, 'train_seconds'):.0f}", f"{_mean(rows, 'step_seconds'):.2f}"] if rate else ["", ""]
            lines.append(
                [
                    title,
                    f"{rate:g}" if rate else "",
                    f"{rows[0]['parameters']:,}",
                    f"{_mean(rows, 'loss'):.3f}",
                    *cells,
                    str(len(rows)),
                ]
            )
    columns = ["method", "rate", "parameters", "held-out loss", "training, s", "step, s", "seeds"]
    return markdown_table(columns, lines)


def instruction_rates() -> str:
    """LoRA's held-out loss by learning rate, on the development seed."""
    rows = [row for row in read_json_lines(ROWS) if row["method"] == "lora" and row["seed"] not in SEEDS]
    return ", ".join(f"{row['loss']:.3f} with {row['learning_rate']:g}" for row in rows)


def instruction_difference() -> str:
    """How far spt is from LoRA in held-out loss and training time, over the seeds that both have."""
    spt, lora = _runs("spt"), _runs("lora")
    both = [(spt[seed], lora[seed]) for seed in spt if seed in lora]
    if not both:
        return "No seed has a run of both methods yet, so there is no difference to report."
    losses = [one["loss"] - other["loss"] for one, other in both]
    ratio = np.mean([one["train_seconds"] / other["train_seconds"] for one, other in both])
    reach = stats.t.ppf(0.975, len(losses) - 1) * np.std(losses, ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else 0
    interval = f" ± {reach:.3f}" if reach else ""
    number = "one seed" if len(both) == 1 else f"{len(both)} seeds"
    return (
        f"The held-out loss of `spt` minus LoRA's is {np.mean(losses):+.3f}{interval} nats ({number}); its training "
        f"takes {ratio:.2f} times as long."
    )


def _runs(method: str) -> dict[int, Row]:
    """A method's rows by seed, without those of the development seed."""
    return {row["seed"]: row for row in read_json_lines(ROWS) if row["method"] == method and row["seed"] in SEEDS}


def _mean(rows: list[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


FIGURES: dict[str, Callable[..., str]] = {
    "instruction_table": instruction_table,
    "instruction_rates": instruction_rates,
    "instruction_difference": instruction_difference,
}
