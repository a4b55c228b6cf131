"""Compares layer searchers, using the table of all subsets: how good are their layers, and what does the search cost?

    python benchmarks/searchers.py --data data --table benchmarks/results/subsets.jsonl \
        --settings benchmarks/searchers.yaml --output benchmarks/results/searchers.jsonl

runs every setting of the settings file on every task and seed, for one and two layers, and prints a table. `--report`
only prints it. Each run is one line of the output and is never repeated. A setting contains the searcher, its steps and
other fields of `SearchConfig`.

The columns of the table:

- regret and percentile: see scoring.py;
- correlation: Spearman's, between the scores of the searcher (of `halving`: the losses of its first round) and the
  accuracy of single layers;
- agreement: the share of layers that the choices with two seeds have in common;
- cost: the seconds of the search relative to a LoRA training (r=8, with the steps of the table; the median of three
  trainings, of SmolLM2 one) on the same examples, just before it in the same process;
- better than all by: points of accuracy above prompts at all layers.

Intervals (95 %, Student's t) are for other examples of the same tasks; with `--over-tasks`, for other tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
import statistics
import time
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

from resumable_runs import freeze, take_part, write_missing_rows
from scoring import (
    Cells,
    Row,
    SubsetTable,
    crossed_interval,
    gains,
    in_words,
    spearman,
)
from sptune import SearchConfig, SPTTrainer, search_prompt_layers
from sptune.compare.summary import mean_of_means
from sptune.runs.output_folder import read_json_lines
from sptune.search.layer_selection import evenly_spaced, select_layers
from sptune.search.searchers import FIXED_SETTINGS
from subsets import BACKBONES, TASKS, Problem

SEEDS = (0, 1, 2)
SIZES = {"minilm": (1, 2), "smollm2": (1,), "minilm-prepend": (1, 2), "smollm2-prepend": (1,)}
# A training of the larger backbone takes minutes.
LORA_RUNS = {"minilm": 3, "smollm2": 1, "minilm-prepend": 3, "smollm2-prepend": 1}
LORA_RATE = 2e-3
# The batch size in which a search evaluates its held-out data, as in `sptune fit`.
EVAL_BATCH = 32
PROMPT_FIELDS = ("visibility", "mixing_rate")
# Searchers whose training does not depend on the number of layers.
SIZE_INDEPENDENT = ("darts", "spt_darts", "gumbel", "l0")  # `sampled` draws sets of that size
SPACED = "evenly spaced"

Settings = dict[str, dict[str, Any]]
Groups = dict[str, list[float]]


def lora_seconds(problem: Problem, seed: int, folder: Path) -> float:
    """The seconds of a LoRA training with the steps of the table, without evaluation."""
    set_seed(seed)
    targets = ["query", "value"] if problem.is_minilm else ["q_proj", "v_proj"]
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
    """Search for `size` layers with one setting."""
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


def result_of_other_size(output: Path, row: Row, setting: dict[str, Any], problem: Problem) -> Row | None:
    """The result for these layers from a search for another number of layers, if the training is the same."""
    if setting["searcher"] not in SIZE_INDEPENDENT or SearchConfig(**search_fields(setting)).criterion not in (
        "gates",
        "perturbation",
    ):
        return None
    key = ("setting", "task", "seed")
    others = current(read_json_lines(output), {row["setting"]: setting}, [row["task"]])
    other = next((one for one in others if all(one[name] == row[name] for name in key)), None)
    if other is None:
        return None
    layers = select_layers(other["scores"], problem.settings["candidates"], num_prompt_layers=row["size"])
    return {**other, "layers": layers, "size": row["size"]}


def key_of(row: Row) -> tuple[Any, ...]:
    """The key of the run that wrote a row."""
    return row["setting"], row["task"], row["seed"], row["size"], freeze(row["about"])


def run_all(given: argparse.Namespace, settings: Settings) -> None:
    """Do all runs of this part that the output does not contain yet."""

    @functools.lru_cache(maxsize=1)
    def load(task: str, seed: int) -> tuple[Problem, float]:
        """The examples of a task and the seconds that LoRA takes on them."""
        problem = Problem(given.backbone, given.data, task, seed)
        times = [lora_seconds(problem, seed, folder(task, seed)) for _ in range(LORA_RUNS[given.backbone])]
        return problem, statistics.median(times)

    def folder(task: str, seed: int) -> Path:
        return given.work / f"{task}-{seed}"

    def row_of(task: str, seed: int, name: str, size: int) -> Row:
        problem, lora = load(task, seed)
        row = {"setting": name, "task": task, "seed": seed, "size": size}
        found = result_of_other_size(given.output, row, settings[name], problem)
        row |= {"lora_seconds": round(lora, 2), "about": settings[name]}
        return row | (found or search(problem, seed, size, settings[name], folder(task, seed)))

    runs = [
        ((name, task, seed, size, freeze(settings[name])), functools.partial(row_of, task, seed, name, size))
        for seed, task in take_part(itertools.product(given.seeds, given.tasks), given.part)
        for name in settings
        for size in SIZES[given.backbone]
    ]
    write_missing_rows(given.output, runs, key_of)


def current(rows: Iterable[Row], settings: Settings, tasks: Iterable[str]) -> list[Row]:
    """The rows of these tasks that were written with the current settings."""
    return [row for row in rows if row["about"] == settings.get(row["setting"]) and row["task"] in tasks]


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a setting for one number of layers; by task, one value per seed of the search.

    Attributes:
        regret: points of accuracy below the best set of that size.
        percentile: the percentage of the other sets that are worse.
        accuracy: the accuracy of the chosen layers, by the seed of the search and of the table.
        correlation: the correlation of the layer scores with the accuracy of single layers.
        agreement: the shared fraction of the layers chosen with two seeds; empty if there is one seed.
        costs: the seconds in units of a LoRA training.
        spaced: the number of runs that chose evenly spaced layers.
    """

    regret: Groups
    percentile: Groups
    accuracy: Cells
    correlation: Groups
    agreement: Groups
    costs: list[float]
    spaced: int

    def better_than(self, other: Callable[[str, int], dict[int, float] | None]) -> Cells:
        """Points of accuracy above those that `other` returns for a task and the seed of a search."""
        return {
            task: {draw: gains(own, other(task, draw) or {}) for draw, own in rows.items()}
            for task, rows in self.accuracy.items()
        }


def score(rows: Sequence[Row], table: SubsetTable) -> Scores:
    """Score the layers that one setting chose, for one number of layers."""
    rows = sorted(rows, key=lambda row: (row["task"], row["seed"]))
    by_task = {task: list(own) for task, own in itertools.groupby(rows, lambda row: row["task"])}

    def each(value: Callable[[Row], float]) -> Groups:
        return {task: [value(row) for row in own] for task, own in by_task.items()}

    singles = {task: [accuracy for _, accuracy in sorted(table.accuracies(task, 1).items())] for task in by_task}
    return Scores(
        regret=each(lambda row: table.regret(row["task"], row["layers"], row["seed"])),
        percentile=each(lambda row: table.percentile(row["task"], row["layers"], row["seed"])),
        accuracy={
            task: {row["seed"]: table.by_draw(task, row["layers"], row["seed"]) for row in own}
            for task, own in by_task.items()
        },
        correlation=each(lambda row: spearman(row["scores"], singles[row["task"]])),
        agreement={
            task: [_shared(a["layers"], b["layers"]) for a, b in itertools.combinations(own, 2)]
            for task, own in by_task.items()
            if len(own) > 1
        },
        costs=[row["seconds"] / row["lora_seconds"] for row in rows],
        spaced=sum(row["layers"] == evenly_spaced(table.candidates, len(row["layers"])) for row in rows),
    )


def scores_by_setting(
    rows: Iterable[Row], size: int, settings: Settings, table: SubsetTable, tasks: Sequence[str]
) -> dict[str, Scores]:
    """The scores of evenly spaced layers and of every setting with runs on all tasks."""
    rows = [row for row in current(rows, settings, tasks) if row["size"] == size and len(row["layers"]) == size]
    # Evenly spaced over the candidates; one layer is the middle one.
    spaced = evenly_spaced(table.candidates, size)
    nothing = {"layers": spaced, "seconds": 0, "lora_seconds": 1, "scores": [one in spaced for one in table.candidates]}
    problems = sorted({(row["task"], row["seed"]) for row in rows})
    by_setting = {SPACED: [{**nothing, "task": task, "seed": seed} for task, seed in problems]}
    by_setting |= {name: [row for row in rows if row["setting"] == name] for name in settings}
    found = {task for task, _ in problems}
    return {
        name: score(own, table) for name, own in by_setting.items() if own and {row["task"] for row in own} == found
    }


def noise_floor(table: SubsetTable, tasks: Sequence[str], size: int) -> Groups:
    """The regret of the best set by one training of each, by task and seed; empty if the table has one seed."""
    return {
        task: [table.regret(task, layers, draw) for draw, layers in table.best_of_one_run(task, size).items()]
        for task in tasks
        if len(table.draws(task, size)) > 1
    }


def report(given: argparse.Namespace, settings: Settings) -> None:
    """Print the noise of the table and the scores of all settings."""
    table = SubsetTable(read_json_lines(given.table))
    tasks = [task for task in given.tasks if task in table.tasks]
    console = Console(width=170)
    noise = table.noise()
    if not math.isnan(noise):
        console.print(
            f"Table: the standard deviation of a run around the mean of its set is {noise:.2f} points, that of a mean "
            f"of three runs {noise / 3**0.5:.2f}; a difference between two sets with three runs each is significant "
            f"above {1.96 * noise * (2 / 3) ** 0.5:.2f}."
        )
    for size in SIZES[given.backbone]:
        known = {task: table.accuracies(task, size).values() for task in tasks}
        spread = ", ".join(f"{task} {max(of) - min(of):.1f}" for task, of in known.items() if of)
        floor = noise_floor(table, tasks, size)
        console.print(
            f"k={size}: best minus worst: {spread}. Regret of a random set: "
            f"{', '.join(f'{task} {table.chance(task, size):.2f}' for task in tasks)}"
            + (f"; of the best set by one training of each: {mean_of_means(floor):.2f}." if floor else ".")
        )
    for task in tasks:
        singles = sorted(table.accuracies(task, 1).items())
        console.print(f"{task}, one layer: " + ", ".join(f"{layers[0]} {accuracy:.1f}" for layers, accuracy in singles))
    sizes = range(1, len(table.candidates) + 1)
    known = all(table.accuracies(task, size) for task in tasks for size in sizes)
    if known and all(len(table.draws(task, *sizes)) > 1 for task in tasks):
        console.print(_numbers_of_layers(table, tasks, sizes))
    rows = read_json_lines(given.output)
    for size in SIZES[given.backbone] if rows else ():
        console.print(_table(size, scores_by_setting(rows, size, settings, table, tasks), table, given))


def _numbers_of_layers(table: SubsetTable, tasks: Sequence[str], sizes: Sequence[int]) -> Table:
    """The accuracy by number of layers, with the seeds that sets of all sizes have."""
    title = "Accuracy by number of prompt layers: mean of all sets, evenly spaced, best by the other seeds"
    shown = Table("layers", *tasks, "all tasks", title=title, title_justify="left")
    for size in sizes:
        cells, values = [], []
        for task in tasks:
            values.append(table.by_size(task, size, sizes))
            cells.append(" / ".join(f"{value:.1f}" for value in values[-1]))
        shown.add_row(str(size), *cells, " / ".join(f"{value:.2f}" for value in np.mean(values, axis=0)))
    return shown


def _table(size: int, scores: dict[str, Scores], table: SubsetTable, given: argparse.Namespace) -> Table:
    """The scores of all settings for one number of layers."""
    columns = ("setting", "regret", "percentile", "correlation", "agreement", "cost", "better than random by",
               f"better than {given.against} by", f"better than {SPACED} by", "better than all by", "runs",
               "spaced in")  # fmt: skip
    title = f"{size} prompt layer{'s' if size > 1 else ''}: {', '.join(next(iter(scores.values())).regret)}"
    shown = Table(*columns, title=title, title_justify="left")

    def better(own: Scores, other: Scores | None) -> str:
        if other is None or other is own:
            return ""
        return in_words(own.better_than(lambda task, draw: other.accuracy[task].get(draw)), over_tasks=given.over_tasks)

    for name, own in scores.items():
        by_chance = own.better_than(lambda task, _: table.by_draw_of_all(task, size))
        by_all = own.better_than(lambda task, draw: table.by_draw(task, table.candidates, draw))
        shown.add_row(
            name,
            f"{mean_of_means(own.regret):.2f}",
            f"{mean_of_means(own.percentile):.0f}",
            f"{mean_of_means(own.correlation):.2f}",
            f"{mean_of_means(own.agreement):.2f}" if own.agreement else "",
            f"{np.median(own.costs):.2f}",
            in_words(by_chance, over_tasks=given.over_tasks),
            better(own, scores.get(given.against)),
            better(own, scores[SPACED]),
            in_words(by_all, over_tasks=given.over_tasks),
            str(len(own.costs)),
            str(own.spaced),
        )
    return shown


def plot(given: argparse.Namespace, settings: Settings) -> None:
    """Plot the regret and the cost of each setting, next to the regret of a random choice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = SubsetTable(read_json_lines(given.table))
    tasks = [task for task in given.tasks if task in table.tasks]
    rows = read_json_lines(given.output)
    sizes = SIZES[given.backbone]
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(6.5 * len(sizes), 0.4 * len(settings) + 1.2), squeeze=False, layout="constrained"
    )
    for axis, size in zip(axes[0], sizes, strict=True):
        scores = scores_by_setting(rows, size, settings, table, tasks)
        names = sorted(scores, key=lambda name: mean_of_means(scores[name].regret), reverse=True)
        for place, name in enumerate(names):
            middle = mean_of_means(scores[name].regret)
            # The interval is of the gain over a random choice.
            gain = scores[name].better_than(lambda task, _, size=size: table.by_draw_of_all(task, size))
            low, high = crossed_interval(gain, over_tasks=given.over_tasks)
            axis.errorbar(middle, place, xerr=(high - low) / 2, fmt="o", color="C0", capsize=3)
        axis.set_yticks(range(len(names)), [f"{name} ({np.median(scores[name].costs):.1f})" for name in names])
        floor = noise_floor(table, tasks, size)
        lines = {"random": np.mean([table.chance(task, size) for task in tasks]),
                 "best of one training of each set": mean_of_means(floor) if floor else math.nan}  # fmt: skip
        for (label, value), style in zip(lines.items(), ("--", ":"), strict=True):
            axis.axvline(value, color="gray", linestyle=style, linewidth=1.2, label=label)
        axis.legend(fontsize=8, loc="upper right")
        axis.set(xlabel="regret in points of accuracy")
        axis.set_title(f"{size} prompt layer{'s' if size > 1 else ''} (cost in LoRA trainings)", fontsize=11)
    figure.savefig(given.plot, dpi=110)


def _shared(first: Sequence[int], second: Sequence[int]) -> float:
    """The fraction of layers that two sets share."""
    return len(set(first) & set(second)) / len(set(first) | set(second))


def common_arguments(about: str | None, work: str) -> argparse.ArgumentParser:
    """A parser with the common options of searchers.py and ablation.py."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with one folder per task, as for subsets.py")
    parser.add_argument("--table", type=Path, required=True, help="the output of subsets.py")
    parser.add_argument("--settings", type=Path, required=True, help="a .yaml file with the settings by name")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl file")
    parser.add_argument("--report", action="store_true", help="only print the table")
    parser.add_argument("--work", type=Path, default=Path(work), help="a folder for the files of trainers")
    return parser


def main() -> None:
    """Do the missing runs and print the table."""
    parser = common_arguments(__doc__, "runs/searchers")
    parser.add_argument("--backbone", default="minilm", choices=list(BACKBONES))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all of the backbone's")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="seeds that draw the examples")
    parser.add_argument("--only", nargs="+", help="names of settings; default: all in the settings file")
    parser.add_argument("--against", default="darts", help="the setting to compare the others with")
    parser.add_argument("--part", default="1/1", help="the share of the runs of one of several processes, such as 1/2")
    parser.add_argument("--over-tasks", action="store_true", help="intervals for other tasks instead of other examples")
    parser.add_argument("--plot", type=Path, help="also plot to this file (.png, .svg)")
    given = parser.parse_args()
    given.tasks = given.tasks or BACKBONES[given.backbone]["tasks"]
    settings = yaml.safe_load(given.settings.read_text())
    if given.only:
        settings = {name: settings[name] for name in given.only}
    if not given.report:
        torch.set_num_threads(1)
        run_all(given, settings)
    report(given, settings)
    if given.plot:
        plot(given, settings)


if __name__ == "__main__":
    main()
