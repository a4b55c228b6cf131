"""Figures of the tables of layer sets, and of the searchers that were scored with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import searchers
from ablation import responses
from markdown_table import markdown_table
from scoring import SubsetTable, in_words
from searchers import Scores, noise_floor
from sptune.compare.summary import mean_of_means
from sptune.search.layer_selection import evenly_spaced, select_layers

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TASKS = {"trec": "TREC", "sst2": "SST-2", "mr": "MR", "mrpc": "MRPC"}
# Files of the runs and of the settings of the searchers that were scored with a table.
SEARCHERS = {
    "subsets_prepend": ("searchers_prepend", "searchers"),
    "subsets_smollm2_prepend": ("searchers_smollm2_prepend", "searchers_smollm2"),
    "subsets_smollm2": ("searchers_smollm2", "searchers_smollm2"),
}

# What ablation.py correlates.
CORRELATIONS = {
    "truth": "final gates and accuracy of single layers in the table",
    "alone": "final gates and held-out loss of the layer alone",
    "closing": "final gates and increase of the held-out loss when the gate is closed",
    "seen": "the same increase on data that the weights were trained on",
    "height": "final gates and index of the layer",
    "third": "final gates and gates after a third of the steps",
    "truth by alone": "accuracy of single layers and held-out loss of the layer alone",
    "truth by closing": "accuracy of single layers and increase of the held-out loss when the gate is closed",
}
# Supernets of a setting by task and draw, one for each restart.
Restarts = dict[tuple[str, int], list[dict[str, Any]]]


@cache
def _table(name: str) -> SubsetTable:
    return SubsetTable(searchers.read_json_lines(RESULTS / f"{name}.jsonl"))


def single_layers(name: str, *tasks: str) -> str:
    """Accuracy of a prompt at one layer alone, by task; the best layer in bold.

    Args:
        name: of the table's file, such as "subsets_prepend".
        tasks: of a table that is not complete, those that it has all single layers of.
    """
    table, rows = _table(name), []
    for task in (one for one in TASKS if one in (tasks or table.tasks)):
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


def table_runs(name: str) -> str:
    """How many trainings a table of layer sets has."""
    return str(len(searchers.read_json_lines(RESULTS / f"{name}.jsonl")))


def table_examples(name: str) -> str:
    """How many test examples the tasks of a table have: the fewest and the most."""
    counts = [row["test_examples"] for row in searchers.read_json_lines(RESULTS / f"{name}.jsonl")]
    return " to ".join(dict.fromkeys(f"{end:,}" for end in (min(counts), max(counts))))


def spread(name: str, size: str) -> str:
    """Points between the best and the worst set of a size, on the task with the fewest and the one with the most."""
    table = _table(name)
    accuracies = [table.accuracies(task, int(size)).values() for task in table.tasks]
    points = [max(of) - min(of) for of in accuracies]
    return f"{min(points):.1f} to {max(points):.1f}"


def random_regret(name: str, sizes: str, *tasks: str) -> str:
    """The regret of layers drawn at random, mean over tasks and sizes, such as `random_regret subsets_prepend 1,2`."""
    table = _table(name)
    chances = [table.chance(task, int(size)) for task in tasks or table.tasks for size in sizes.split(",")]
    return f"{np.mean(chances):.2f}"


def lowest_regret(name: str, size: str) -> str:
    """The regret of the best set by one training of each, mean over tasks: the noise floor."""
    table = _table(name)
    return f"{mean_of_means(noise_floor(table, table.tasks, int(size))):.2f}"


def noise(name: str, runs: str = "1") -> str:
    """The standard deviation of the mean of so many runs around the mean of their set, in points."""
    return f"{_table(name).noise() / int(runs) ** 0.5:.2f}"


def _scores(table_name: str, size: int, tasks: Sequence[str]) -> dict[str, Scores]:
    """The scores of evenly spaced layers and of each setting with runs of all these tasks."""
    rows_name, settings_name = SEARCHERS[table_name]
    settings = yaml.safe_load((ROOT / "benchmarks" / f"{settings_name}.yaml").read_text(encoding="utf-8"))
    rows = searchers.read_json_lines(RESULTS / f"{rows_name}.jsonl")
    return searchers.scores_by_setting(rows, size, settings, _table(table_name), tasks)


def searcher_gain(table_name: str, size: str, name: str, sample: str, *against: str) -> str:
    """Points that a searcher's layers are above others, with the 95 % interval.

    Args:
        table_name: file of the table of layer sets.
        size: the number of layers.
        name: of the searcher's setting.
        sample: of which the interval is, "draws" or "tasks".
        against: words of another setting, "random", or "all": prompts at all layers.
    """
    table, other = _table(table_name), " ".join(against)
    scores = _scores(table_name, int(size), table.tasks)
    looked_up: dict[str, Callable[[str, int], dict[int, float] | None]] = {
        "random": lambda task, _: table.by_draw_of_all(task, int(size)),
        "all": lambda task, draw: table.by_draw(task, table.candidates, draw),
    }
    known = looked_up.get(other, lambda task, draw: scores[other].accuracy[task].get(draw))
    return in_words(scores[name].better_than(known), over_tasks=sample == "tasks")


def searcher_value(table_name: str, what: str, size: str, *name: str) -> str:
    """The regret, percentile, correlation or cost of a setting, mean over tasks; or in how many runs it is "spaced"."""
    own = _scores(table_name, int(size), _table(table_name).tasks)[" ".join(name)]
    if what == "spaced":
        return f"{own.spaced} of {len(own.costs)}"
    if what == "cost":
        return f"{np.median(own.costs):.2f}"
    value = mean_of_means(getattr(own, what))
    return f"{value:.0f}" if what == "percentile" else f"{value:.2f}"


def searcher_scores(table_name: str, *tasks: str) -> str:
    """A table of all searchers: cost, regret, correlation, and how much better than random layers.

    Args:
        table_name: file of the table of layer sets.
        tasks: those that count.
    """
    table = _table(table_name)
    scores = {size: own for size in (1, 2) if (own := _scores(table_name, size, tasks))}
    sizes = list(scores)
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


def choices(table_name: str) -> str:
    """The single layer that each searcher chose, and its regret, by task; one draw."""
    table, rows = _table(table_name), searchers.read_json_lines(RESULTS / f"{SEARCHERS[table_name][0]}.jsonl")
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
    runs = _ablation_runs()
    reference = _looked_up(next(iter(runs.values())))
    lines = []
    for name, by_run in sorted(runs.items(), key=lambda item: _regret(item[1], "gates")):
        gains = {
            task: {draw: {at: own[at] - reference[task][draw][at] for at in own} for draw, own in of.items()}
            for task, of in _looked_up(by_run).items()
        }
        better = "" if name == next(iter(runs)) else in_words(gains, over_tasks=False)
        lines.append([name, f"{_regret(by_run, 'gates'):.2f}", better, f"{_regret(by_run, 'stopped_gates'):.2f}"])
    return markdown_table(["setting", "regret", "better than `spt_darts` by", "regret, stopped early"], lines)


def ablation_correlations() -> str:
    """A table of the correlations of gates and losses: mean over all supernets, lowest and highest setting."""
    table, runs = _table("subsets_prepend"), _ablation_runs()
    every = responses(table, [row for by_run in runs.values() for rows in by_run.values() for row in rows])
    found = [_responses_of(by_run) for by_run in runs.values()]
    rows = []
    for what, title in CORRELATIONS.items():
        values = [own[what] for own in found]
        rows.append([title, f"{every[what]:.2f}", f"{min(values):.2f} to {max(values):.2f}"])
    return markdown_table(["correlation", "all supernets", "lowest to highest setting"], rows)


def ablation_correlation(what: str, *name: str) -> str:
    """One of these correlations of one setting, such as `ablation_correlation truth-by-closing darts`."""
    return f"{_responses_of(_ablation_runs()[' '.join(name)])[what.replace('-', ' ')]:.2f}"


@cache
def _ablation_runs() -> dict[str, Restarts]:
    """The supernets of each setting."""
    settings = yaml.safe_load((ROOT / "benchmarks" / "ablation.yaml").read_text(encoding="utf-8"))
    rows = searchers.read_json_lines(RESULTS / "ablation.jsonl")
    runs: dict[str, Restarts] = {name: {} for name in settings}
    for row in searchers.current(rows, settings, _table("subsets_prepend").tasks):
        runs[row["setting"]].setdefault((row["task"], row["seed"]), []).append(row)
    return runs


def _responses_of(by_run: Restarts) -> dict[str, float]:
    return responses(_table("subsets_prepend"), [row for rows in by_run.values() for row in rows])


def _regret(by_run: Restarts, gates: str) -> float:
    """Mean regret of the one and the two layers with the largest gates."""
    table = _table("subsets_prepend")
    return float(
        np.mean(
            [
                table.regret(task, _largest(rows, gates, size), draw)
                for (task, draw), rows in by_run.items()
                for size in (1, 2)
            ]
        )
    )


def _looked_up(by_run: Restarts) -> dict[str, dict[int, dict[int, float]]]:
    """Accuracies of these layers, mean of one and of two, by task, draw of the run and draw of the table."""
    table = _table("subsets_prepend")
    found: dict[str, dict[int, dict[int, float]]] = {}
    for (task, draw), rows in by_run.items():
        one, two = (table.by_draw(task, _largest(rows, "gates", size), draw) for size in (1, 2))
        found.setdefault(task, {})[draw] = {at: (one[at] + two[at]) / 2 for at in one}
    return found


def _largest(rows: Sequence[dict[str, Any]], gates: str, size: int) -> list[int]:
    """The layers with the largest gates in the mean of the restarts."""
    means = np.mean([row[gates] for row in rows], axis=0).tolist()
    return select_layers(means, range(len(means)), num_prompt_layers=size)


FIGURES: dict[str, Callable[..., str]] = {
    "single_layers": single_layers,
    "numbers_of_layers": numbers_of_layers,
    "table_runs": table_runs,
    "table_examples": table_examples,
    "spread": spread,
    "random_regret": random_regret,
    "lowest_regret": lowest_regret,
    "noise": noise,
    "searcher_scores": searcher_scores,
    "searcher_gain": searcher_gain,
    "searcher_value": searcher_value,
    "choices": choices,
    "ablation": ablation,
    "ablation_correlations": ablation_correlations,
    "ablation_correlation": ablation_correlation,
}
