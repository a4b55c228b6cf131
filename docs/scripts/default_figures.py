"""Figures of the variants of added prompts that benchmarks/defaults.py tried on development data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from scipy import stats

from defaults import resolve_settings
from sptune.runs.output_folder import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"sst2": "SST-2", "mr": "MR", "trec": "TREC", "mrpc": "MRPC"}
Runs = dict[tuple[str, int], float]


def variants(name: str) -> str:
    """A table of the variants that have runs of all tasks: accuracies in percent, differences from the first in points.

    Args:
        name: of the settings file in benchmarks, and of its rows in benchmarks/results.
    """
    study = yaml.safe_load((ROOT / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8"))
    rows = read_json_lines(ROOT / "benchmarks" / "results" / f"{name}.jsonl")
    found: dict[str, Runs] = {
        variant: {
            (row["task"], row["seed"]): 100 * row["accuracy"]
            for row in rows
            if row["settings"] == resolve_settings(study["variants"], variant)
        }
        for variant in study["variants"]
    }
    tasks = [task for task in study["tasks"] if any(key[0] == task for own in found.values() for key in own)]
    first = next(iter(found.values()))
    lines = [
        ["variant", *(TASKS[task] for task in tasks), "mean", "minus the first", "runs"],
        ["---"] + ["---:"] * (len(tasks) + 3),
    ]
    for variant, own in found.items():
        means = [np.mean([value for (task, _), value in own.items() if task == one] or math.nan) for one in tasks]
        if not np.isnan(means).any():
            cells = [f"{mean:.1f}" for mean in (*means, np.mean(means))]
            lines.append([variant, *cells, "" if own is first else _difference(own, first), str(len(own))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _difference(own: Runs, first: Runs) -> str:
    """Mean over the runs that both have, with a 95 % interval (Student's t)."""
    both = [own[key] - first[key] for key in own if key in first]
    if len(both) < 2:
        return ""
    reach = stats.t.ppf(0.975, len(both) - 1) * np.std(both, ddof=1) / len(both) ** 0.5
    return f"{np.mean(both):+.1f} ± {reach:.1f}"


FIGURES: dict[str, Callable[..., str]] = {"variants": variants}
