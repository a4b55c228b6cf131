"""Figures of the studies of whole runs that `sptune compare` made: scores, differences and costs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markdown_table import markdown_table
from sptune.compare.methods import RENAMED_METHODS
from sptune.compare.summary import interval, interval_within, machine, mean_of_means

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
Row = dict[str, Any]
Runs = dict[tuple[str, int], Row]

TASKS = {"sst2": "SST-2", "mr": "MR", "trec": "TREC", "mrpc": "MRPC", "rte": "RTE"}
LABELS = {
    "spt": "**`spt`**, added to the tokens",
    "spt-prepend": "`spt-prepend`, in front of the text",
    "spt-prepend-searched": "`spt-prepend`, with a search",
    "spt-prepend-middle": "`spt-prepend`, middle layer",
    "full": "full fine-tuning",
    "lora": "LoRA r=8, query and value",
    "lora-upper": "LoRA r=8, upper layers",
    "dora": "DoRA",
    "vera": "VeRA",
    "ln-tuning": "LayerNorm tuning",
    "linear-probe": "linear probe",
    "bitfit": "BitFit",
    "ia3": "IA3",
    "static-prompts": "static prompts, all layers",
    "prefix-tuning": "prefix tuning (P-tuning v2)",
    "prompt-tuning": "prompt tuning",
    "p-tuning": "P-tuning",
    "adalora": "AdaLoRA",
    "lpt": "Late Prompt Tuning, `npg`",
    "lpt-appg": "Late Prompt Tuning, `appg`",
    "idpg": "IDPG",
    "idpg-phm": "IDPG, PHM",
    "instance-prompts": "instance prompts, all layers",
    "houlsby": "Houlsby adapters",
    "pfeiffer": "Pfeiffer adapters",
    "adapterdrop": "AdapterDrop",
    "compacter": "Compacter",
    "zero-shot": "zero-shot",
}


@cache
def runs_of(study: str) -> dict[str, Runs]:
    """The finished runs of a study that are reported, by method, then by task and seed.

    Args:
        study: a folder of benchmarks/results, or a file in one, such as "few_shot/float32".
    """
    rows = _rows_of(study)
    runs: dict[str, Runs] = {}
    for row in rows:
        if row["state"] == "done" and not row["tuning"] and _rate_counts(row, rows):
            runs.setdefault(method_of(row), {})[row["task"], row["seed"]] = row
    return runs


def _rows_of(study: str) -> list[Row]:
    path = RESULTS / f"{study}.jsonl" if "/" in study else RESULTS / study / "runs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def method_of(row: Row) -> str:
    """The method under today's name: `spt` adds to the tokens, and in rows from before there was `add` it did not.

    Rows have had a `from_layer` since `compare` knows more than one placement.
    """
    name = RENAMED_METHODS.get(row["method"], str(row["method"]))
    if name.startswith("spt") and not name.startswith("spt-prepend") and "from_layer" not in row:
        return name.replace("spt", "spt-prepend", 1)
    return name


def _rate_counts(row: Row, rows: Sequence[Row]) -> bool:
    """Whether the run has the learning rate that development data choose now."""
    same = [one for one in rows if (method_of(one), one["task"]) == (method_of(row), row["task"])]
    if len({one["learning_rate"] for one in same if not one["tuning"]}) == 1:
        return True
    tried: dict[float, list[float]] = {}
    for one in same:
        if one["tuning"] and one["state"] == "done":
            tried.setdefault(one["learning_rate"], []).append(one["score"])
    most = max(map(len, tried.values()))
    worth = {rate: statistics.mean(own) for rate, own in tried.items() if len(own) == most}
    return bool(row["learning_rate"] == min(rate for rate in worth if worth[rate] == max(worth.values())))


def reference(study: str) -> str:
    """`spt`, or `spt-prepend` as long as `spt` has not done all tasks of the study."""
    runs = runs_of(study)
    done = {task for task, _ in runs.get("spt", {})}
    return "spt" if done == set(_tasks(study)) else "spt-prepend"


def scores(study: str, *chosen: str) -> str:
    """A table of accuracies in percent, with differences from the reference in points; the best method first.

    Args:
        study: see `runs_of`.
        chosen: the methods that are shown; all if none is named.
    """
    runs, against, tasks = runs_of(study), reference(study), _tasks(study)
    shown = [name for name in runs if {task for task, _ in runs[name]} == set(tasks) and name in (chosen or runs)]
    shown.sort(key=lambda name: -mean_of_means(_by_task(runs[name])))
    mean, both = ["mean"] * (len(tasks) > 1), len(tasks) > 2 and not chosen
    intervals = ["for another task", "on other seeds"] if both else ["on other seeds"]
    head = ["method", *(TASKS[task] for task in tasks), *mean, f"minus `{against}`", *intervals, "parameters"]
    rows = []
    for name in shown:
        by_task = _by_task(runs[name])
        cells = [_percent(statistics.mean(by_task[task])) for task in tasks] + [_percent(mean_of_means(by_task))]
        gaps = _gaps(runs[name], runs[against], both) if name != against else [""] * (1 + len(intervals))
        rows.append([LABELS.get(name, f"`{name}`"), *cells[: len(tasks) + len(mean)], *gaps, _parameters(runs[name])])
    return markdown_table(head, rows)


def _gaps(own: Runs, other: Runs, both: bool) -> list[str]:
    """The difference from the reference, and its intervals."""
    gaps = _differences(own, other)
    points = round(100 * mean_of_means(gaps), 1) + 0.0  # without a negative zero
    return [f"{points:+.1f}", *([_interval(interval(gaps))] if both else []), _interval(interval_within(gaps))]


def difference(study: str, method: str, against: str = "", *tasks: str) -> str:
    """How many points a method is above another, without a sign: a sentence has it.

    Args:
        study: see `runs_of`.
        method: the one; "prompts:spt-prepend" is that of another study.
        against: the other; the reference if it is empty.
        tasks: those that count; all if none is named.
    """
    gaps = _differences(_runs(study, method), _runs(study, against or reference(study)))
    return f"{100 * abs(mean_of_means({task: gaps[task] for task in tasks or gaps})):.1f}"


def gap(study: str, method: str, against: str, *tasks: str) -> str:
    """How many points a method is above another, with the 95 % interval on other seeds, as `difference` has it."""
    gaps = _differences(_runs(study, method), _runs(study, against))
    gaps = {task: own for task, own in gaps.items() if task in (tasks or gaps)}
    low, high = interval_within(gaps)
    return f"{100 * mean_of_means(gaps):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def span(study: str, what: str, method: str, *tasks: str) -> str:
    """The lowest and the highest value of a method's runs, such as "1,989 to 1,990"; one number if they are the same.

    Args:
        study: see `runs_of`.
        what: a name of `MEASURES`.
        method: its name, or "all".
        tasks: those that count; all if none is named.
    """
    measure, form = MEASURES[what]
    methods = runs_of(study).values() if method == "all" else [_runs(study, method)]
    values = [measure(row) for own in methods for (task, _), row in own.items() if task in (tasks or {task})]
    return " to ".join(dict.fromkeys(form.format(end) for end in (min(values), max(values))))


def selected(study: str, method: str, *layers: str) -> str:
    """In how many runs a method has exactly these layers, such as "24 of 25"."""
    rows = _runs(study, method).values()
    return f"{sum(row['prompt_layers'] == list(map(int, layers)) for row in rows)} of {len(rows)}"


def apart(study: str, method: str, other: str, *tasks: str) -> str:
    """By how many correct test examples two runs of one task and seed differ: the lowest and the highest number."""
    first, second = _runs(study, method), _runs(study, other)
    keys = [key for key in first if key in second and key[0] in (tasks or {key[0]})]
    counts = [abs(_correct(first[key]) - _correct(second[key])) for key in keys]
    return " to ".join(dict.fromkeys(map(str, (min(counts), max(counts)))))


def times(study: str, method: str, against: str = "") -> str:
    """How many times the parameters of another method a method has."""
    own, other = (
        statistics.median(row["parameters"]["added"] for row in _runs(study, name).values())
        for name in (method, against or reference(study))
    )
    return f"{own / other:.1f}" if own < 10 * other else f"{own / other:.0f}"


def by_seed(study: str, *chosen: str) -> str:
    """A table of accuracies by task with those of each seed.

    Args:
        study: see `runs_of`.
        chosen: the methods; all by default.
    """
    runs, tasks = runs_of(study), _tasks(study)
    rows = []
    for name, own in ((name, own) for name, own in runs.items() if not chosen or name in chosen):
        cells = []
        for task in tasks:
            values = [own[key]["test"]["score"] for key in sorted(own) if key[0] == task]
            each = f" ({', '.join(map(_percent, values))})" if len(set(values)) > 1 else ""
            cells.append(_percent(statistics.mean(values)) + each if values else "")
        rows.append([LABELS.get(name, f"`{name}`"), *cells, _parameters(own)])
    return markdown_table(["method", *(f"{TASKS[task]}: mean (each seed)" for task in tasks), "parameters"], rows)


def rates(study: str, method: str) -> str:
    """A table of the development scores in percent by which a method's learning rate is chosen."""
    scores: dict[float, dict[str, list[float]]] = {}
    for row in _rows_of(study):
        if method_of(row) == method and row["tuning"] and row["state"] == "done":
            scores.setdefault(row["learning_rate"], {}).setdefault(row["task"], []).append(row["score"])
    tasks = [task for task in TASKS if any(task in own for own in scores.values())]
    draws = max(len(own) for by_task in scores.values() for own in by_task.values())
    lines = []
    for rate, by_task in sorted(scores.items()):
        whole = {task: by_task[task] for task in tasks if len(by_task.get(task, ())) == draws}
        cells = [_percent(statistics.mean(whole[task])) if task in whole else "" for task in tasks]
        mean = _percent(mean_of_means(whole)) if len(whole) == len(tasks) else ""
        lines.append([f"{rate:g}", *cells, mean])
    return markdown_table(["learning rate", *(TASKS[task] for task in tasks), "mean"], lines)


def costs(study: str, *tasks: str) -> str:
    """A table of the cost of a run, medians: seconds of search and training, by those of LoRA on one machine.

    Args:
        study: see `runs_of`.
        tasks: those that count; all by default.
    """
    lora = _of_tasks(runs_of(study)["lora"], tasks)
    runs = {name: own for name, all_runs in runs_of(study).items() if (own := _of_tasks(all_runs, tasks))}
    rows = []
    for name, own in sorted(runs.items(), key=lambda item: statistics.median(_seconds(item[1].values()))):
        ratios = _time_ratios(own, lora) if name != "lora" else []
        rows.append(
            [
                LABELS.get(name, f"`{name}`"),
                f"{statistics.median(row['seconds']['step'] for row in own.values()):.3f}",
                f"{statistics.median(_seconds(own.values())):.0f}",
                f"{statistics.median(ratios):.2f}" if ratios else "",
                f"{next(iter(own.values()))['adapter_bytes'] / 1e3:,.0f}",
                str(len(own)),
            ]
        )
    columns = ["method", "seconds a step", "seconds a run", "times LoRA's", "adapter, kB", "runs"]
    return markdown_table(columns, rows)


def _of_tasks(runs: Runs, tasks: Sequence[str]) -> Runs:
    return {key: row for key, row in runs.items() if not tasks or key[0] in tasks}


def _time_ratios(own: Runs, other: Runs) -> list[float]:
    """Seconds of the runs of one method by those of another, where both are of one machine."""
    return [
        row["seconds"]["total"] / other[key]["seconds"]["total"]
        for key, row in own.items()
        if key in other and machine(row) == machine(other[key])
    ]


def slower(study: str, method: str, against: str = "", *tasks: str) -> str:
    """How many times as long a run of a method takes as one of the other: median of pairs on one machine."""
    runs = runs_of(study)
    ratios = _time_ratios(_of_tasks(runs[method], tasks), runs[against or reference(study)])
    return f"{statistics.median(ratios):.2f}"


def slower_pairs(study: str, method: str, against: str, *tasks: str) -> str:
    """The lowest and the highest of the ratios whose median `slower` gives, such as "0.59 to 0.67"."""
    runs = runs_of(study)
    ratios = _time_ratios(_of_tasks(runs[method], tasks), runs[against])
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def parameters(study: str, method: str) -> str:
    """How many parameters a method trains without the head; "reference" is that of the study."""
    return _parameters(runs_of(study)[reference(study) if method == "reference" else method])


def _runs(study: str, method: str) -> Runs:
    """The runs of a method, of another study if that stands before it and a colon."""
    other, _, name = method.rpartition(":")
    return runs_of(other or study)[name]


def _tasks(study: str) -> list[str]:
    found = {task for own in runs_of(study).values() for task, _ in own}
    return [task for task in TASKS if task in found]


def _by_task(runs: Runs) -> dict[str, list[float]]:
    by_task: dict[str, list[float]] = {}
    for (task, _), row in sorted(runs.items()):
        by_task.setdefault(task, []).append(row["test"]["score"])
    return by_task


def _differences(own: Runs, other: Runs) -> dict[str, list[float]]:
    by_task: dict[str, list[float]] = {}
    for key in sorted(set(own) & set(other)):
        by_task.setdefault(key[0], []).append(own[key]["test"]["score"] - other[key]["test"]["score"])
    return by_task


def _correct(row: Row) -> int:
    return round(row["test"]["accuracy"] * row["test"]["examples"])


def _standard_error(row: Row) -> float:
    """Of the accuracy of one run, in points."""
    accuracy = row["test"]["accuracy"]
    return 100 * math.sqrt(accuracy * (1 - accuracy) / row["test"]["examples"])


def _seconds(rows: Iterable[Row]) -> list[float]:
    return [row["seconds"]["total"] for row in rows]


def _parameters(runs: Runs) -> str:
    return f"{statistics.median(row['parameters']['added'] for row in runs.values()):,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(ends: tuple[float, float]) -> str:
    return "" if math.isnan(ends[0]) else f"[{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"


MEASURES: dict[str, tuple[Callable[[Row], float], str]] = {
    "score": (lambda row: 100 * row["test"]["score"], "{:.1f}"),
    "standard-error": (_standard_error, "{:.1f}"),
    "test-examples": (lambda row: row["test"]["examples"], "{:,}"),
    "development-examples": (lambda row: row["validation"]["examples"], "{:,}"),
    "search-seconds": (lambda row: row["seconds"]["search"], "{:.0f}"),
    "seconds": (lambda row: row["seconds"]["total"], "{:.0f}"),
}

FIGURES: dict[str, Callable[..., str]] = {
    "scores": scores,
    "difference": difference,
    "gap": gap,
    "span": span,
    "selected": selected,
    "apart": apart,
    "times": times,
    "by_seed": by_seed,
    "rates": rates,
    "costs": costs,
    "slower": slower,
    "slower_pairs": slower_pairs,
    "parameters": parameters,
}
