"""Scores searchers by look-up in the table of all subsets: are their layers better than a guess, and at what price?

    python benchmarks/searchers.py --data data --table benchmarks/results/subsets.jsonl \
        --settings benchmarks/searchers.yaml --output benchmarks/results/searchers.jsonl

runs every setting of the settings file on every task and draw of the examples, for one and for two layers, and prints
the table. Each run is a line of the output and never done twice; `--report` only prints. A searcher is a file in
`src/sptune/search/searchers`; a setting is an entry of the settings file: steps, and fields of `SearchConfig`.

Regret: how much accuracy, in points, the best set of that size in the table is above the chosen one. Percentile: 100 is
the best set of its size, 0 the worst. Correlation: Spearman's, between a searcher's scores (of a race: the losses of
its first round, in which all sets run) and the accuracy of single layers. Agreement: shared layers of the sets chosen
on two draws of one task, as a part of all. Price: seconds by those of a LoRA training (r=8, with the table's steps; the
median of three, one of SmolLM2) on the same examples in the same process just before. Better than all by: points of
accuracy above prompts at all layers. Intervals are 95 % bootstrap intervals over tasks and draws of the examples.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from sptune import SearchConfig, SPTTrainer, search_prompt_layers
from sptune.search.config import FIXED_SETTINGS
from sptune.search.selection import evenly_spaced, select_layers
from subsets import BACKBONES, TASKS, Problem

SEEDS = (0, 1, 2)
SIZES = {"minilm": (1, 2), "smollm2": (1,)}
# A training of the larger backbone takes minutes.
LORA_RUNS = {"minilm": 3, "smollm2": 1}
LORA_RATE = 2e-3
# What `sptune fit` takes; a search reads its held-out half in such batches.
EVAL_BATCH = 32
PROMPT_FIELDS = ("visibility", "mixing_rate")
# Searchers whose training is the same however many layers are wanted.
TRAINED_ALIKE = ("darts", "spt_darts", "gumbel", "l0")
DRAWS = 10_000
SPACED = "evenly spaced"

Row = dict[str, Any]
Truth = dict[str, dict[tuple[int, ...], float]]


# -- running -------------------------------------------------------------------------------------------------------


def lora_seconds(problem: Problem, seed: int, folder: Path) -> float:
    """What a LoRA training with the table's steps takes, without evaluation."""
    set_seed(seed)
    targets = ["query", "value"] if problem.backbone == "minilm" else ["q_proj", "v_proj"]
    config = LoraConfig(task_type=problem.prompts().task_type, r=8, lora_alpha=16, target_modules=targets)
    arguments = problem.arguments(folder, problem.settings["steps"], seed, learning_rate=LORA_RATE)
    model = get_peft_model(problem.model(), config)
    trainer = SPTTrainer(model, arguments, train_dataset=problem.train, **problem.trainer_options())
    started = time.monotonic()
    trainer.train()
    return time.monotonic() - started


def search_fields(setting: dict[str, Any]) -> dict[str, Any]:
    """The fields of `SearchConfig` in a setting."""
    names = [one.name for one in dataclasses.fields(SearchConfig)]
    return {name: value for name, value in setting.items() if name in names}


def search(problem: Problem, seed: int, size: int, setting: dict[str, Any], folder: Path) -> Row:
    """Search for so many layers with one setting."""
    set_seed(seed)
    prompts = {name: value for name, value in setting.items() if name in PROMPT_FIELDS}
    fields = search_fields(setting)
    config = problem.prompts(candidate_layers=problem.settings["candidates"], **prompts)
    network = get_peft_model(problem.model(), config)
    if fields["searcher"] not in FIXED_SETTINGS:
        fields["num_prompt_layers"] = size
    result = search_prompt_layers(
        network,
        problem.train,
        problem.arguments(folder, setting.get("steps", 1), seed, per_device_eval_batch_size=EVAL_BATCH),
        SearchConfig(seed=seed, **fields),
        **problem.trainer_options(),
    )
    return {"layers": result.prompt_layers, "scores": result.scores, "seconds": round(result.seconds, 2)}


def alike(output: Path, row: Row, setting: dict[str, Any], problem: Problem) -> Row | None:
    """The outcome of the same setting's search for another number, where only the reading of the scores differs."""
    if setting["searcher"] not in TRAINED_ALIKE or SearchConfig(**search_fields(setting)).reading not in (
        "gates",
        "perturbation",
    ):
        return None
    key = ("setting", "task", "seed")
    other = next((one for one in read_lines(output) if all(one[name] == row[name] for name in key)), None)
    if other is None or other["about"] != setting:
        return None
    layers = select_layers(other["scores"], problem.settings["candidates"], num_prompt_layers=row["size"])
    return {**other, "layers": layers, "size": row["size"]}


def run_all(given: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> None:
    """Every run that the output has not yet."""
    done = {(row["setting"], row["task"], row["seed"], row["size"]) for row in read_lines(given.output)}
    part, parts = map(int, given.part.split("/"))
    for number, (seed, task) in enumerate(itertools.product(given.seeds, given.tasks)):
        sizes = SIZES[given.backbone]
        wanted = [(name, size) for name in settings for size in sizes if (name, task, seed, size) not in done]
        if number % parts != part - 1 or not wanted:
            continue
        problem = Problem(given.backbone, given.data, task, seed)
        folder = given.work / f"{task}-{seed}"
        lora = statistics.median(lora_seconds(problem, seed, folder) for _ in range(LORA_RUNS[given.backbone]))
        for name, size in wanted:
            row = {"setting": name, "task": task, "seed": seed, "size": size}
            found = alike(given.output, row, settings[name], problem)
            row |= {"lora_seconds": round(lora, 2), "about": settings[name]}
            row |= found or search(problem, seed, size, settings[name], folder)
            with given.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


# -- scoring -------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[Row]:
    """The rows of a file, none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_table(path: Path) -> tuple[Truth, float]:
    """Mean accuracy of each set by task, in points; and the standard deviation of one run about it.

    A draw of the examples makes all sets of a task better or worse; that is taken out, since it is the same for all.
    """
    runs: dict[str, dict[tuple[int, ...], dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_lines(path):
        runs[row["task"]][tuple(row["layers"])][row["seed"]] = 100 * row["accuracy"]
    truth: Truth = {}
    squares, freedom = 0.0, 0
    for task, sets in runs.items():
        # Every set of a size must have the same draws, or an easy draw would pass for a good set.
        counts = {size: min(len(of) for one, of in sets.items() if len(one) == size) for size in {len(s) for s in sets}}
        truth[task] = {one: float(np.mean([of[s] for s in sorted(of)[: counts[len(one)]]])) for one, of in sets.items()}
        everywhere = max(sets, key=len)
        if counts[len(everywhere)] < counts[1]:
            del truth[task][everywhere]  # it is compared with sets of other sizes
        for size in counts:
            same = [one for one in sets if len(one) == size and counts[size] > 1]
            if len(same) > 1:
                grid = np.array([[sets[one][seed] for seed in sorted(sets[one])[: counts[size]]] for one in same])
                rest = grid - grid.mean(1, keepdims=True) - grid.mean(0) + grid.mean()
                squares += float((rest**2).sum())
                freedom += (grid.shape[0] - 1) * (grid.shape[1] - 1)
    return truth, (squares / freedom) ** 0.5 if freedom else float("nan")


def of_size(truth: Truth, task: str, size: int) -> dict[tuple[int, ...], float]:
    """The sets of a size and their accuracies."""
    return {layers: accuracy for layers, accuracy in truth[task].items() if len(layers) == size}


def regret(truth: Truth, task: str, layers: Sequence[int]) -> float:
    """Points below the best set of the same size."""
    return max(of_size(truth, task, len(layers)).values()) - truth[task][tuple(layers)]


def percentile(truth: Truth, task: str, layers: Sequence[int]) -> float:
    """Share of the other sets of the size that are worse, ties half, in percent."""
    others = [value for one, value in of_size(truth, task, len(layers)).items() if one != tuple(layers)]
    own = truth[task][tuple(layers)]
    if not others:
        return 100.0
    return 100 * sum((value < own) + (value == own) / 2 for value in others) / len(others)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 if one of them is constant."""
    ranks = [
        np.array([np.mean([(b < a) + (b == a) / 2 for b in values]) for a in values]) for values in (first, second)
    ]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    values = np.asarray(values)
    means = values[np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))].mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def chance(truth: Truth, task: str, size: int, score: Callable[[Truth, str, Sequence[int]], float]) -> float:
    """The expected score of a set drawn at random."""
    return float(np.mean([score(truth, task, layers) for layers in of_size(truth, task, size)]))


def noise_floor(path: Path, tasks: Sequence[str], size: int) -> float:
    """Mean regret, in the table without one draw, of the set that is best in that draw left out, by task and draw.

    What a search would show that knew one real run of every set.
    """
    rows = [row for row in read_lines(path) if row["task"] in tasks and len(row["layers"]) == size]
    found = []
    for task, left_out in itertools.product(tasks, SEEDS):
        runs: dict[tuple[int, ...], dict[int, float]] = defaultdict(dict)
        for row in rows:
            if row["task"] == task:
                runs[tuple(row["layers"])][row["seed"]] = 100 * row["accuracy"]
        if not runs or any(left_out not in of or len(of) < 2 for of in runs.values()):
            continue
        rest = {one: np.mean([of[seed] for seed in of if seed != left_out]) for one, of in runs.items()}
        chosen = max(runs, key=lambda one: runs[one][left_out])
        found.append(max(rest.values()) - rest[chosen])
    return float(np.mean(found)) if found else float("nan")


def report(given: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    truth, noise = read_table(given.table)
    tasks = [task for task in given.tasks if task in truth]
    console = Console(width=170)
    if not math.isnan(noise):
        console.print(
            f"Table: one run's standard deviation about its set's mean is {noise:.2f} points, that of a mean of three "
            f"{noise / 3**0.5:.2f}; two sets with three runs each differ beyond noise from "
            f"{1.96 * noise * (2 / 3) ** 0.5:.2f} on."
        )
    for size in SIZES[given.backbone]:
        known = {task: of_size(truth, task, size) for task in tasks}
        spread = ", ".join(f"{task} {max(of.values()) - min(of.values()):.1f}" for task, of in known.items() if of)
        console.print(
            f"k={size}: best minus worst: {spread}. Regret of a set drawn at random: "
            f"{np.mean([chance(truth, task, size, regret) for task in tasks]):.2f}; of the best set of one whole "
            f"training of each: {noise_floor(given.table, tasks, size):.2f}."
        )
    for task in tasks:
        singles = sorted(of_size(truth, task, 1).items())
        console.print(f"{task}, one layer: " + ", ".join(f"{layers[0]} {accuracy:.1f}" for layers, accuracy in singles))
    rows = [row for row in read_lines(given.output) if row["task"] in tasks]
    for size in SIZES[given.backbone]:
        title = f"{size} prompt layer{'s' if size > 1 else ''}: {', '.join(tasks)}"
        console.print(_table(title, size, [row for row in rows if row["size"] == size], settings, truth, given.against))


def _table(title: str, size: int, rows: list[Row], settings: Iterable[str], truth: Truth, against: str) -> Table:
    """Scores of all settings at one size."""
    columns = ("setting", "regret", "percentile", "correlation", "agreement", "price", "better than random by",
               f"better than {against} by", "better than all by", "runs")  # fmt: skip
    table = Table(*columns, title=title, title_justify="left")
    rows = [row for row in rows if len(row["layers"]) == size]
    # What needs no search: layers evenly spaced over the candidates; one layer is then the middle one.
    candidates = sorted({layer for of in truth.values() for layers in of for layer in layers})
    spaced = evenly_spaced(candidates, size)
    problems = sorted({(row["task"], row["seed"]) for row in rows})
    rows += [
        {"setting": SPACED, "task": task, "seed": seed, "size": size, "layers": spaced, "seconds": 0, "lora_seconds": 1,
         "scores": [float(layer in spaced) for layer in candidates]}
        for task, seed in problems
    ]  # fmt: skip
    regrets = {(row["setting"], row["task"], row["seed"]): regret(truth, row["task"], row["layers"]) for row in rows}
    for name in (SPACED, *settings):
        own = [row for row in rows if row["setting"] == name]
        if not own or {row["task"] for row in own} != {task for task, _ in problems}:
            continue
        found = [regrets[name, row["task"], row["seed"]] for row in own]
        at_random = [chance(truth, row["task"], size, regret) for row in own]
        other = [regrets.get((against, row["task"], row["seed"]), math.nan) for row in own]
        over_all = [
            truth[row["task"]][tuple(row["layers"])] - truth[row["task"]].get(tuple(candidates), math.nan)
            for row in own
        ]
        singles = {task: [accuracy for _, accuracy in sorted(of_size(truth, task, 1).items())] for task in truth}
        correlations = [spearman(row["scores"], singles[row["task"]]) for row in own]
        agreements = _agreements(own)
        table.add_row(
            name,
            _mean(found),
            f"{np.mean([percentile(truth, row['task'], row['layers']) for row in own]):.0f}",
            f"{np.mean(correlations):.2f}",
            f"{np.mean(agreements):.2f}" if agreements else "",
            f"{np.median([row['seconds'] / row['lora_seconds'] for row in own]):.2f}",
            _mean(np.subtract(at_random, found)),
            "" if name == against or np.isnan(other).any() else _mean(np.subtract(other, found)),
            "" if np.isnan(over_all).any() else _mean(over_all),
            str(len(own)),
        )
    return table


def plot(given: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> None:
    """A picture: each setting's regret and its price, beside chance and the noise floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    truth, _ = read_table(given.table)
    tasks = [task for task in given.tasks if task in truth]
    rows = [row for row in read_lines(given.output) if row["task"] in tasks]
    sizes = SIZES[given.backbone]
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(6.5 * len(sizes), 0.4 * len(settings) + 1.2), squeeze=False, layout="constrained"
    )
    for axis, size in zip(axes[0], sizes, strict=True):
        scores = []
        for name in settings:
            own = [row for row in rows if row["setting"] == name and row["size"] == size]
            found = [regret(truth, row["task"], row["layers"]) for row in own]
            if found:
                price = np.median([row["seconds"] / row["lora_seconds"] for row in own])
                scores.append((float(np.mean(found)), *interval(found), f"{name} ({price:.1f})"))
        scores.sort(reverse=True)
        for place, (mean, low, high, _) in enumerate(scores):
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
        axis.set_yticks(range(len(scores)), [label for *_, label in scores])
        lines = {"random": np.mean([chance(truth, task, size, regret) for task in tasks]),
                 "best of one training of each set": noise_floor(given.table, tasks, size)}  # fmt: skip
        for (label, value), style in zip(lines.items(), ("--", ":"), strict=True):
            axis.axvline(value, color="grey", linestyle=style, linewidth=1.2, label=label)
        axis.legend(fontsize=8, loc="upper right")
        axis.set(xlabel="regret in points of accuracy", xlim=(0, None))
        axis.set_title(f"{size} prompt layer{'s' if size > 1 else ''} (price in LoRA trainings)", fontsize=11)
    figure.savefig(given.plot, dpi=110)


def _mean(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{np.mean(values):.2f} [{low:.2f}, {high:.2f}]"


def _agreements(rows: list[Row]) -> list[float]:
    """Shared part of the layers of every two sets of one task and size."""
    return [
        len(set(a["layers"]) & set(b["layers"])) / len(set(a["layers"]) | set(b["layers"]))
        for a, b in itertools.combinations(rows, 2)
        if (a["task"], a["size"]) == (b["task"], b["size"])
    ]


def common_arguments(about: str | None, work: str) -> argparse.ArgumentParser:
    """A parser of what the scoring commands share."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the tasks, as for subsets.py")
    parser.add_argument("--table", type=Path, required=True, help="what subsets.py wrote")
    parser.add_argument("--settings", type=Path, required=True, help=".yaml: the settings by name")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl")
    parser.add_argument("--report", action="store_true", help="only print what the output holds")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder for what trainers write")
    return parser


def main() -> None:
    parser = common_arguments(__doc__, "runs/searchers")
    parser.add_argument("--backbone", default="minilm", choices=list(BACKBONES))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all of the backbone's")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="draws of the examples")
    parser.add_argument("--against", default="darts", help="the setting that others are compared with")
    parser.add_argument("--part", default="1/1", help="which share of the runs, such as 1/2, for several processes")
    parser.add_argument("--plot", type=Path, help="also draw a picture (.png, .svg)")
    given = parser.parse_args()
    given.tasks = given.tasks or BACKBONES[given.backbone]["tasks"]
    settings = yaml.safe_load(given.settings.read_text())
    if not given.report:
        torch.set_num_threads(1)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        run_all(given, settings)
    report(given, settings)
    if given.plot:
        plot(given, settings)


if __name__ == "__main__":
    main()
