"""Figures of the tables of layer sets, and of the searchers that were scored with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import searchers
from markdown_table import markdown_table
from scoring import SubsetTable, in_words
from sptune.compare.summary import mean_of_means
from sptune.search.layer_selection import evenly_spaced, select_layers

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TASKS = {"trec": "TREC", "sst2": "SST-2", "mr": "MR", "mrpc": "MRPC"}


@cache
def _table(name: str) -> SubsetTable:
    return SubsetTable(searchers.read_json_lines(RESULTS / f"{name}.jsonl"))


def single_layers(name: str) -> str:
    """Accuracy of a prompt at one layer alone, by task; the best layer in bold.

    Args:
        name: of the table's file, such as "subsets_prepend".
    """
    table, rows = _table(name), []
    for task in (one for one in TASKS if one in table.tasks):
        found = {layers[0]: accuracy for layers, accuracy in sorted(table.accuracies(task, 1).items())}
        best = f"{max(found.values()):.1f}"
        cells = [f"**{best}**" if f"{value:.1f}" == best else f"{value:.1f}" for value in found.values()]
        rows.append([TASKS[task], *cells])
    return markdown_table(["layer", *map(str, table.candidates)], rows)


def numbers_of_layers(name: str) -> str:
    """Mean accuracy by number of prompt layers: of all sets, of evenly spaced ones, and of the best by other draws."""
    table = _table(name)
    sizes = range(1, len(table.candidates) + 1)
    found = {size: np.mean([table.by_size(task, size, sizes) for task in table.tasks], axis=0) for size in sizes}
    kinds = ("mean of all sets of that size", "evenly spaced", "best set by the other draw")
    rows = [[kind, *(f"{found[size][place]:.1f}" for size in sizes)] for place, kind in enumerate(kinds)]
    return markdown_table(["layers", *map(str, sizes)], rows)


def searcher_scores(table_name: str, rows_name: str, settings_name: str, *tasks: str) -> str:
    """A table of all searchers: cost, regret, correlation, and how much better than random layers.

    Args:
        table_name: file of the table of layer sets.
        rows_name: file of the searchers' runs.
        settings_name: file of their settings, in benchmarks.
        tasks: those that count.
    """
    table = _table(table_name)
    settings = yaml.safe_load((ROOT / "benchmarks" / f"{settings_name}.yaml").read_text(encoding="utf-8"))
    rows = searchers.read_json_lines(RESULTS / f"{rows_name}.jsonl")
    sizes = [size for size in (1, 2) if any(row["size"] == size for row in rows)]
    scores = {size: searchers.scores_by_setting(rows, size, settings, table, tasks) for size in sizes}
    names = sorted(scores[sizes[0]], key=lambda name: sum(mean_of_means(of[name].regret) for of in scores.values()))
    cells = []
    for name in names:
        of = [scores[size][name] for size in sizes]
        better = [
            in_words(own.better_than(lambda task, _, size=size: table.by_draw_of_all(task, size)), over_tasks=False)
            for size, own in zip(sizes, of, strict=True)
        ]
        cost = " / ".join(f"{np.median(own.costs):.2f}" for own in of)
        regret = " / ".join(f"{mean_of_means(own.regret):.2f}" for own in of)
        correlation = " / ".join(f"{mean_of_means(own.correlation):.2f}" for own in of)
        cells.append([_label(name), cost, regret, correlation, *better, str(len(of[0].costs))])
    gains = [f"better than random, {size} layer{'s' * (size > 1)}" for size in sizes]
    return markdown_table(["searcher", "cost", "regret", "correlation", *gains, "runs"], cells)


def _label(name: str) -> str:
    """A setting such as "darts, perturbation" with its searcher as code."""
    searcher, comma, rest = name.partition(",")
    return name if name == searchers.SPACED else f"`{searcher}`{comma}{rest}"


def choices(table_name: str, rows_name: str) -> str:
    """The single layer that each searcher chose, and its regret, by task; one draw."""
    table, rows = _table(table_name), searchers.read_json_lines(RESULTS / f"{rows_name}.jsonl")
    tasks = [task for task in TASKS if task in table.tasks]
    middle = evenly_spaced(table.candidates, 1)
    lines = [["layer drawn at random", "", *(f"{table.chance(task, 1):.1f}" for task in tasks)]]
    lines.append(["evenly spaced (the middle)", "0", *(_choice(table, task, middle, 0) for task in tasks)])
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = {row["task"]: row for row in rows if row["setting"] == setting}
        cost = np.median([row["seconds"] / row["lora_seconds"] for row in own.values()])
        cells = [_choice(table, task, own[task]["layers"], own[task]["seed"]) for task in tasks]
        lines.append([f"`{setting}`", f"{cost:.2f}", *cells])
    return markdown_table(["", "cost", *(f"{TASKS[task]}: layer, regret" for task in tasks)], lines)


def _choice(table: SubsetTable, task: str, layers: Sequence[int], draw: int) -> str:
    return f"{layers[0]}, {table.regret(task, layers, draw):.1f}"


def ablation() -> str:
    """Regret of the layers with the largest gates, for each change of `spt_darts`; and how much less it is."""
    table = _table("subsets_prepend")
    settings = yaml.safe_load((ROOT / "benchmarks" / "ablation.yaml").read_text(encoding="utf-8"))
    rows = searchers.current(searchers.read_json_lines(RESULTS / "ablation.jsonl"), settings, table.tasks)
    regrets: dict[str, float] = {}
    looked_up: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    for name in settings:
        by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in (one for one in rows if one["setting"] == name):
            by_run.setdefault((row["task"], row["seed"]), []).append(row)
        both = {key: [_largest(own, size) for size in (1, 2)] for key, own in by_run.items()}
        regrets[name] = float(
            np.mean([table.regret(task, one, draw) for (task, draw), of in both.items() for one in of])
        )
        looked_up[name] = {}
        for (task, draw), (one, two) in both.items():
            first, second = table.by_draw(task, one, draw), table.by_draw(task, two, draw)
            looked_up[name].setdefault(task, {})[draw] = {at: (first[at] + second[at]) / 2 for at in first}
    reference = looked_up[next(iter(settings))]
    lines = []
    for name in sorted(regrets, key=regrets.__getitem__):
        gains = {
            task: {draw: {at: own[at] - reference[task][draw][at] for at in own} for draw, own in of.items()}
            for task, of in looked_up[name].items()
        }
        better = "" if name == next(iter(settings)) else in_words(gains, over_tasks=False)
        lines.append([name, f"{regrets[name]:.2f}", better])
    return markdown_table(["setting", "regret", "better than `spt_darts` by"], lines)


def _largest(rows: Sequence[dict[str, Any]], size: int) -> list[int]:
    """The layers with the largest gates in the mean of the restarts."""
    gates = np.mean([row["gates"] for row in rows], axis=0).tolist()
    return select_layers(gates, range(len(gates)), num_prompt_layers=size)


FIGURES: dict[str, Callable[..., str]] = {
    "single_layers": single_layers,
    "numbers_of_layers": numbers_of_layers,
    "searcher_scores": searcher_scores,
    "choices": choices,
    "ablation": ablation,
}
