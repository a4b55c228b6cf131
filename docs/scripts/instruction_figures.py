"""Figures of prompts and LoRA on instruction data, from the rows of benchmarks/instruction.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from instruction import DEFAULT, DEVELOPMENT_SEED, LORA, NARROW, SEEDS, Method, method_of
from markdown_table import markdown_table
from sptune.runs.output_folder import read_json_lines

ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "instruction.jsonl"
# By method and kind of trainer; "before" is SPTTrainer when it computed all logits.
ZERO_SHOT: Method = ("zero-shot", None)
TITLES = {
    (ZERO_SHOT, None): "no training",
    (LORA, "transformers"): "LoRA r=8, `Trainer`",
    (LORA, "sptune"): "LoRA r=8, `SPTTrainer`",
    (DEFAULT, "sptune"): "**`spt`**, `SPTTrainer`",
    (NARROW, "sptune"): "`spt` with r=4, `SPTTrainer`",
    (LORA, "before"): "LoRA r=8, all logits",
    (NARROW, "before"): "`spt` with r=4, all logits",
}
Row = dict[str, Any]


def instruction_table() -> str:
    """Means over the seeds of each method and trainer that has a row."""
    lines = []
    for (method, kind), title in TITLES.items():
        rows = list(_runs(method, kind).values())
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


def instruction_rates(method: str, width: str | None = None) -> str:
    """A method's held-out loss by learning rate, on the development seed.

    Args:
        method: "lora" or "spt".
        width: r of the latter.
    """
    rows = [row for row in read_json_lines(ROWS) if row["seed"] == DEVELOPMENT_SEED]
    rows = [row for row in rows if method_of(row) == (method, width and int(width))]
    rows.sort(key=lambda row: row["learning_rate"])
    return ", ".join(f"{row['loss']:.3f} with {row['learning_rate']:g}" for row in rows) or "not measured yet"


def instruction_difference(kind: str, width: str = "") -> str:
    """How far spt is from LoRA in held-out loss and training time, over the seeds that both have.

    Args:
        kind: of LoRA's trainer.
        width: r of spt; the default if it is left out.
    """
    method: Method = ("spt", int(width)) if width else DEFAULT
    spt, lora = _runs(method, "before" if kind == "before" else "sptune"), _runs(LORA, kind)
    both = [(spt[seed], lora[seed]) for seed in spt if seed in lora]
    if not both:
        return "not measured yet"
    losses = [one["loss"] - other["loss"] for one, other in both]
    ratio = np.mean([one["train_seconds"] / other["train_seconds"] for one, other in both])
    reach = stats.t.ppf(0.975, len(losses) - 1) * np.std(losses, ddof=1) / len(losses) ** 0.5 if len(losses) > 1 else 0
    interval = f" ± {reach:.3f}" if reach else ""
    number = "one seed" if len(both) == 1 else f"{len(both)} seeds"
    return f"{np.mean(losses):+.3f}{interval} nats, {ratio:.2f} times the training time ({number})"


def _runs(method: Method, kind: str | None) -> dict[int, Row]:
    """The rows of a method and a kind of trainer by seed, without those of the development seed."""
    rows = [row for row in read_json_lines(ROWS) if method_of(row) == method and row["seed"] in SEEDS]
    return {row["seed"]: row for row in rows if kind is None or row.get("trainer", "before") == kind}


def _mean(rows: list[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


FIGURES: dict[str, Callable[..., str]] = {
    "instruction_table": instruction_table,
    "instruction_rates": instruction_rates,
    "instruction_difference": instruction_difference,
}
