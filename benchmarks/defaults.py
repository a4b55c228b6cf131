"""Compares variants of the prompts on development data, to choose the defaults.

    python benchmarks/defaults.py --data data --settings benchmarks/defaults.yaml \
        --output benchmarks/results/defaults.jsonl --part 1/2

trains every variant of the settings file on 500 examples of each task, with each seed, and evaluates it on 1,000
others. The table shows the mean accuracy by task and the difference to the first variant, with a 95 % interval over the
runs. `--report` only prints it. Each run is one line of the output and is never repeated.

All examples come from the training files (`train.jsonl`; of MR, without the test data that local_study.py splits off),
and seeds start at 1000, so that no test example of the studies is used. A variant contains layers, settings that differ
from the common ones of subsets.py, and these options, which sptune does not offer because they were not better:

- `form`: `scale` for h * s + b with two learned vectors per layer, or `bottleneck and scale` for the sum of both;
  `scale` multiplies the learning rate of the vectors;
- `lora`: LoRA (r = 8, query and value) instead of prompts, for comparison;
- `dropout` on the offset, or `backbone_dropout` in the frozen blocks from the first prompt layer on;
- `normalized`: the input of the generator is h / rms(h);
- `place` (MiniLM): `attention` or `feed_forward`, the part of the block whose input the generator reads and to whose
  output the offset is added.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import nn
from torch.nn import functional
from transformers import set_seed

from local_study import SPLIT_OFF, split_off
from resumable_runs import Row, freeze, take_part, write_missing_rows
from sptune.runs.output_folder import read_json_lines
from subsets import Problem, Settings, train_network

FIRST_SEED = 1000
Key = tuple[str, int]


class OtherOffset(nn.Module):
    """The offset of a bottleneck, of scale and shift, or of both, with dropout."""

    def __init__(self, bottleneck: nn.Module, hidden_size: int, settings: Settings) -> None:
        super().__init__()
        form = settings.get("form", "bottleneck")
        self.bottleneck = bottleneck if "bottleneck" in form else None
        self.speed = settings.get("scale", 1)
        self.scale = nn.Parameter(torch.zeros(hidden_size)) if "scale" in form else None
        self.shift = nn.Parameter(torch.zeros(hidden_size)) if "scale" in form else None
        self.dropout = settings.get("dropout", 0.0)
        self.normalized = settings.get("normalized", False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The offset of each token, (..., d)."""
        if self.normalized:
            states = states / states.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        offset = torch.zeros_like(states) if self.bottleneck is None else self.bottleneck(states)
        if self.scale is not None:
            offset = offset + self.speed * (states * self.scale + self.shift)
        # sptune keeps modules of a frozen backbone in evaluation mode.
        return functional.dropout(offset, self.dropout, training=torch.is_grad_enabled())


class Beside(nn.Module):
    """Replaces the generator of a block; adds the offset to the output of a module inside the block."""

    def __init__(self, offset: nn.Module, reads: nn.Module, writes: nn.Module) -> None:
        super().__init__()
        self.offset = offset
        self._read: list[torch.Tensor] = []
        reads.register_forward_pre_hook(lambda _, args: self._read.append(args[0]))
        writes.register_forward_hook(lambda _, args, output: output + self.offset(self._read.pop()).to(output.dtype))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """No offset, (..., d)."""
        return torch.zeros_like(states)


def build(problem: Problem, settings: Settings) -> PeftModel:
    """The backbone with the prompts of a variant, or with LoRA."""
    if settings.get("lora"):
        config = LoraConfig(
            task_type=problem.prompts().task_type,
            r=8,
            lora_alpha=16,
            target_modules=["query", "value"] if problem.is_minilm else ["q_proj", "v_proj"],
        )
        return get_peft_model(problem.model(), config)
    network = get_peft_model(problem.model(), problem.prompts(prompt_layers=list(settings["layers"])))
    blocks = [module for module in network.modules() if hasattr(module, "spt_generator")]
    if settings.get("backbone_dropout"):
        for block in network.base_model.backbone.layers[min(settings["layers"]) :]:
            block.register_forward_pre_hook(lambda one, _: one.train(torch.is_grad_enabled()) and None)
    if not {"form", "dropout", "normalized", "place"} & settings.keys():
        return network
    for block in blocks:
        for name, generator in block.spt_generator.items():
            offset = OtherOffset(generator, block.attachment.backbone.hidden_size, settings)
            inner = block.base_layer
            if settings.get("place") == "attention":
                block.spt_generator[name] = Beside(offset, inner.attention.self.query, inner.attention.output.dense)
            elif settings.get("place") == "feed_forward":
                block.spt_generator[name] = Beside(offset, inner.intermediate.dense, inner.output.dense)
            else:
                block.spt_generator[name] = offset
    return network


def resolve_settings(variants: dict[str, Settings], name: str) -> Settings:
    """The settings of a variant, including those of the variant that it is `like`."""
    own = dict(variants[name])
    base = own.pop("like", None)
    return {**(resolve_settings(variants, base) if base else {}), **own}


def key_of(row: Row) -> tuple[str, int, str]:
    """The key of the run that wrote a row."""
    return row["task"], row["seed"], freeze(row["settings"])


def run_all(given: argparse.Namespace, study: dict[str, Any]) -> None:
    """Do all runs of this part that the output does not contain yet."""
    variants = study["variants"]
    wanted = itertools.product(range(FIRST_SEED, FIRST_SEED + study["draws"]), study["tasks"], variants)
    runs = [
        ((task, seed, freeze(settings)), partial(row_of, given, study["backbone"], name, task, seed, settings))
        for seed, task, name in take_part(wanted, given.part)
        for settings in [resolve_settings(variants, name)]
    ]
    write_missing_rows(given.output, runs, key_of)


def row_of(given: argparse.Namespace, backbone: str, name: str, task: str, seed: int, settings: Settings) -> Row:
    """Train and evaluate a variant; returns its row."""
    work = given.work / f"part-{given.part.split('/')[0]}"
    changes = {"test_examples": 1000, **{key: value for key, value in settings.items() if key != "layers"}}
    problem = Problem(backbone, development_data(given.data, task, work), task, seed, changes, "train.jsonl")
    started = time.monotonic()
    set_seed(seed)
    row = train_network(problem, build(problem, settings), seed, work)
    row |= {"seconds": round(time.monotonic() - started, 1), "amx": torch.backends.cpu.get_cpu_capability()}
    return {"variant": name, "task": task, "seed": seed, "settings": settings, **row}


def development_data(data: Path, task: str, work: Path) -> Path:
    """The folder of a task's training data, without the test data that the studies split off from them (MR)."""
    name, size = SPLIT_OFF.get(task, ("", 0))
    if name != "test":
        return data
    made = work / "development" / task
    split_off(data / task / "train.jsonl", made / "test.jsonl", size, made / "train.jsonl")
    return work / "development"


def report(given: argparse.Namespace, study: dict[str, Any]) -> None:
    """Print the table."""
    variants = study["variants"]
    found: dict[str, dict[Key, float]] = defaultdict(dict)
    for row in read_json_lines(given.output):
        for name in variants:
            if row["settings"] == resolve_settings(variants, name):
                found[name][row["task"], row["seed"]] = row["accuracy"]
    first = next(iter(variants))
    table = Table("variant", *study["tasks"], "mean", "minus the first", "runs")
    for name in variants:
        own = found[name]
        means = [[value for (task, _), value in own.items() if task == one] for one in study["tasks"]]
        if not all(means):
            continue
        cells = [f"{np.mean(values):.3f}" for values in means]
        table.add_row(
            name, *cells, f"{np.mean([np.mean(values) for values in means]):.4f}",
            _difference(own, found[first]), str(len(own)),
        )  # fmt: skip
    Console(width=140).print(table)


def _difference(own: dict[Key, float], first: dict[Key, float]) -> str:
    both = [own[key] - first[key] for key in own if key in first]
    if len(both) < 2 or own is first:
        return ""
    half = stats.t.ppf(0.975, len(both) - 1) * np.std(both, ddof=1) / len(both) ** 0.5
    return f"{np.mean(both):+.4f} ± {half:.4f}"


def main() -> None:
    """Do the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder per task, as for subsets.py")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="the share of the runs of one of several processes, such as 1/2")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"), help="a folder for cached activations")
    parser.add_argument("--report", action="store_true", help="only print the table")
    given = parser.parse_args()
    study = yaml.safe_load(given.settings.read_text())
    if not given.report:
        torch.set_num_threads(1)
        run_all(given, study)
    report(given, study)


if __name__ == "__main__":
    main()
