"""Compares variants of SPT-DARTS and shows what their gates correlate with, using the table of all subsets.

    python benchmarks/ablation.py --data data --table benchmarks/results/subsets_prepend.jsonl \
        --settings benchmarks/ablation.yaml --output benchmarks/results/ablation.jsonl

trains a supernet for every setting of the settings file on every task with three seeds, evaluates it with several
selection criteria, and prints two tables. `--report` only prints them. Each run is one line of the output and is never
repeated. A setting contains steps, weight decay, restarts, a trainer from this file, and fields of `SearchConfig` and
`SPTConfig`.

The first table shows the regret (as in searchers.py) of the one and two layers with the largest gates, the difference
to the first setting, and the regret of early stopping at the lowest gate loss (mean of ten steps).

The second table shows the mean Spearman correlation of the gates over layers with

- truth: the accuracy of single layers in the table of all subsets;
- alone: the held-out loss of the discrete network with that layer, on the shared weights;
- closing: the increase of the loss when the gate is closed, on the architecture split and on part of the weight split;
- height: the index of the layer;
- third of the way: the gates after a third of the gate steps.

`truth by alone` and `truth by closing` show the correlation of these two with the truth.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments, set_seed

from resumable_runs import freeze, write_missing_rows
from scoring import Row, SubsetTable, gains, in_words, spearman
from searchers import PROMPT_FIELDS, SEEDS, Settings, common_arguments, current, search_fields
from sptune import SearchConfig
from sptune.modeling.gates import at_least_float32
from sptune.runs.output_folder import read_json_lines
from sptune.search.bilevel_trainer import SPTSearchTrainer
from sptune.search.gate_sampler import GateSampler
from sptune.search.layer_selection import select_layers
from subsets import Problem

TASKS = ("trec", "sst2")  # defaults are fixed on these
SMOOTHED = 10


class OneLevelTrainer(SPTSearchTrainer):
    """Trains gates and weights on all data, in separate batches; the selection criteria have no held-out data."""

    def __init__(self, model: torch.nn.Module, args: TrainingArguments, *, train_dataset: Any, **kwargs: Any) -> None:
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self.train_dataset = self.architecture_dataset = train_dataset


class CompetingGates(GateSampler):
    """DARTS with gates softmax(alpha) over the layers, so that a gate only grows if others shrink."""

    def sample(self, size: int) -> torch.Tensor:
        """The gates, (1, candidates), with sum 1."""
        return torch.softmax(at_least_float32(self.trainer.alphas), 0)[None]

    def trained(self) -> torch.Tensor:
        """softmax(alpha)."""
        return torch.softmax(at_least_float32(self.trainer.alphas.detach()), 0)


TRAINERS = {
    "spt": SPTSearchTrainer,
    "one_level": OneLevelTrainer,
    "competing": partial(SPTSearchTrainer, gate_sampler=CompetingGates),
}


def run(problem: Problem, seed: int, restart: int, setting: dict[str, Any], folder: Path) -> Row:
    """Train a supernet and evaluate it with all selection criteria; returns the measurements."""
    seed += 100 * restart
    set_seed(seed)
    prompts = {name: value for name, value in setting.items() if name in PROMPT_FIELDS}
    network = get_peft_model(problem.model(), problem.prompts(prompt_layers="search", **prompts))
    options = {"weight_decay": setting["weight_decay"]} if "weight_decay" in setting else {}
    trainer = TRAINERS[setting.get("trainer", "spt")](
        network,
        problem.arguments(folder, setting["steps"], seed, **options),
        train_dataset=problem.train,
        search=SearchConfig(seed=seed, **search_fields(setting)),
        **problem.trainer_options(),
    )
    trainer.train()
    entries = trainer.history.entries
    seconds = trainer.history.seconds
    gates = torch.tensor(trainer.gates())
    count = len(gates)
    closings = [gates[None] * (1 - torch.eye(count)[place]) for place in range(count)]
    gated = [partial(trainer.tuner.gating, values) for values in (gates[None], *closings)]
    alone = [partial(trainer.tuner.prompting_at, [layer]) for layer in trainer.tuner.generator_layers]
    held_out = trainer.held_out.losses([*gated, *alone])
    trainer.architecture_dataset = trainer.train_dataset
    seen = trainer.held_out.losses(gated, 0, 2)
    return {
        "gates": gates.tolist(),
        "stopped_gates": _stopped(entries),
        "third_gates": entries[len(entries) - 2 * (len(entries) - _first_move(entries)) // 3 - 1]["gates"],
        "losses": [held_out[0], seen[0]],
        "perturbation": [loss - held_out[0] for loss in held_out[1 : count + 1]],
        "alone": [-loss for loss in held_out[count + 1 :]],
        "seen_perturbation": [loss - seen[0] for loss in seen[1:]],
        "seconds": round(seconds, 2),
    }


def _first_move(entries: list[dict[str, Any]]) -> int:
    return next(place for place, entry in enumerate(entries) if entry["gate_loss"] is not None)


def _stopped(entries: list[dict[str, Any]]) -> list[float]:
    """The gates of the step with the lowest smoothed gate loss, which has `SMOOTHED` gate steps before it."""
    moved = [entry for entry in entries if entry["gate_loss"] is not None]
    ends = range(min(SMOOTHED, len(moved)), len(moved) + 1)
    best = min(ends, key=lambda end: np.mean([entry["gate_loss"] for entry in moved[max(0, end - SMOOTHED) : end]]))
    return moved[best - 1]["gates"]


def key_of(row: Row) -> tuple[Any, ...]:
    """The key of the run that wrote a row."""
    return row["setting"], row["task"], row["seed"], row["restart"], freeze(row["about"])


def run_all(given: argparse.Namespace, settings: Settings) -> None:
    """Do all runs that the output does not contain yet."""
    load_problem = functools.lru_cache(maxsize=1)(partial(Problem, "minilm-prepend", given.data))

    def row_of(task: str, seed: int, name: str, restart: int) -> Row:
        row = {"setting": name, "task": task, "seed": seed, "restart": restart}
        row |= run(load_problem(task, seed), seed, restart, settings[name], given.work / f"{task}-{seed}")
        return {**row, "about": settings[name]}

    runs = [
        ((name, task, seed, restart, freeze(setting)), partial(row_of, task, seed, name, restart))
        for seed, task in itertools.product(SEEDS, TASKS)
        for name, setting in settings.items()
        for restart in range(setting.get("restarts", 1))
    ]
    write_missing_rows(given.output, runs, key_of)


def report(given: argparse.Namespace, settings: Settings) -> None:
    """Print both tables."""
    table = SubsetTable(read_json_lines(given.table))
    by_run: dict[str, dict[tuple[str, int], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in current(read_json_lines(given.output), settings, TASKS):
        by_run[row["setting"]][row["task"], row["seed"]].append(row)
    first = next(iter(settings))
    regrets: dict[str, dict[tuple[str, int], float]] = {}
    accuracies: dict[str, dict[str, dict[int, dict[int, float]]]] = {}
    scores = Table("setting", "k=1", "k=2", "mean", "better than the first by", "stopped", "seconds", "runs",
                   title="Regret of the layers with the largest gates", title_justify="left")  # fmt: skip
    correlations = Table("setting", "truth", "alone", "closing", "closing, weight split", "height", "third of the way",
                      "truth by alone", "truth by closing", "loss, weight split", "loss, architecture split",
                      title="What the gates correlate with", title_justify="left")  # fmt: skip
    for name in settings:
        runs = {key: rows for key, rows in by_run[name].items() if len(rows) == settings[name].get("restarts", 1)}
        if not runs:
            continue
        sizes = {size: {key: _regret(table, key, rows, "gates", size) for key, rows in runs.items()} for size in (1, 2)}
        stopped = [_regret(table, key, rows, "stopped_gates", size) for key, rows in runs.items() for size in (1, 2)]
        regrets[name] = {key: (sizes[1][key] + sizes[2][key]) / 2 for key in runs}
        accuracies[name] = {task: {} for task in TASKS}
        for (task, seed), rows in runs.items():
            one, two = (table.by_draw(task, _layers(rows, "gates", size), seed) for size in (1, 2))
            accuracies[name][task][seed] = {draw: (one[draw] + two[draw]) / 2 for draw in one}
        better = {
            task: {seed: gains(own, accuracies[first][task].get(seed, {})) for seed, own in by_seed.items()}
            for task, by_seed in accuracies[name].items()
        }
        base = by_run[first]
        ratios = [
            sum(row["seconds"] for row in rows) / base[key][0]["seconds"] for key, rows in runs.items() if key in base
        ]
        scores.add_row(
            name,
            f"{np.mean(list(sizes[1].values())):.2f}",
            f"{np.mean(list(sizes[2].values())):.2f}",
            f"{np.mean(list(regrets[name].values())):.2f}",
            "" if name == first else in_words(better, over_tasks=False),
            f"{np.mean(stopped):.2f}",
            f"{np.median(ratios):.2f}",
            str(len(runs)),
        )
        own = responses(table, [row for rows in runs.values() for row in rows])
        correlations.add_row(name, *(f"{value:.2f}" for value in own.values()))
    everything = [row for name in settings for rows in by_run[name].values() for row in rows]
    correlations.add_row("all of them", *(f"{value:.2f}" for value in responses(table, everything).values()))
    console = Console(width=150)
    console.print(scores)
    console.print("Seconds are relative to the first setting and include training only.")
    console.print(correlations)


def _layers(rows: list[Row], criterion: str, size: int) -> list[int]:
    """The layers with the largest scores, averaged over restarts."""
    scores = np.mean([row[criterion] for row in rows], axis=0).tolist()
    return select_layers(scores, range(len(scores)), num_prompt_layers=size)


def _regret(table: SubsetTable, key: tuple[str, int], rows: list[Row], criterion: str, size: int) -> float:
    return table.regret(key[0], _layers(rows, criterion, size), key[1])


def responses(table: SubsetTable, rows: list[Row]) -> dict[str, float]:
    """What the gates correlate with, and the losses: means over the rows."""
    found = defaultdict(list)
    for row in rows:
        known = [accuracy for _, accuracy in sorted(table.accuracies(row["task"], 1).items())]
        height = list(range(len(known)))
        others = {"truth": known, "alone": row["alone"], "closing": row["perturbation"],
                  "seen": row["seen_perturbation"], "height": height, "third": row["third_gates"]}  # fmt: skip
        for name, values in others.items():
            found[name].append(spearman(row["gates"], values))
        found["truth by alone"].append(spearman(row["alone"], known))
        found["truth by closing"].append(spearman(row["perturbation"], known))
        found["loss, weight split"].append(row["losses"][1])
        found["loss, architecture split"].append(row["losses"][0])
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Do the missing runs and print the tables."""
    given = common_arguments(__doc__, "runs/ablation").parse_args()
    settings = yaml.safe_load(given.settings.read_text())
    if not given.report:
        torch.set_num_threads(1)
        run_all(given, settings)
    report(given, settings)


if __name__ == "__main__":
    main()
