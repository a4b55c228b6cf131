"""What the defaults of prompts are chosen by: variants of them, on development data alone.

    python benchmarks/defaults.py --data data --settings benchmarks/defaults.yaml \
        --output benchmarks/results/defaults.jsonl --part 1/2

trains every variant of the settings file on 500 examples of each task and draw, and measures it on 1,000 others. All
of them come from the training files (`train.jsonl`; of MR, what local_study.py leaves there), and seeds count from
1000 on, so that no test example of the studies is looked at. A variant holds layers and whatever differs from the
common settings of subsets.py, and what sptune itself does not offer because it did no better here:

- `form`: `scale` for h * s + b, two vectors learned for each layer, or `bottleneck and scale` for the sum of both;
  `scale` is how many times faster the vectors are trained;
- `lora`: LoRA (r = 8, query and value) in place of prompts, as a measure;
- `dropout` on the offset, or `backbone_dropout`, that of the frozen blocks from the first prompt layer on;
- `normalized`: the generator reads h / rms(h);
- `place` (MiniLM): `attention` or `feed_forward`, beside which part of the block the offset is added. The generator
  reads what that part reads.

Each run is a line of the output and never done twice; `--report` only prints the table: mean accuracy over the draws,
task by task, and how far it is from the first variant, with a 95 % interval over the runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
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

from local_study import CARVED, carve
from sptune.runs.output_folder import append_json_line, read_json_lines
from subsets import Problem, Settings, train_network

FIRST_SEED = 1000
Key = tuple[str, int]


class OtherOffset(nn.Module):
    """An offset of the bottleneck, of scale and shift, or of both, with dropout on what is added."""

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
        # sptune keeps what belongs to a frozen backbone in evaluation mode.
        return functional.dropout(offset, self.dropout, training=torch.is_grad_enabled())


class Beside(nn.Module):
    """In place of a block's generator: adds its offset to another module's output, and nothing to the block's input."""

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
    """The backbone with a variant's prompts, or with LoRA."""
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
        for block in network.base_model._attachment().backbone.layers[min(settings["layers"]) :]:
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


def settings_of(variants: dict[str, Settings], name: str) -> Settings:
    """A variant's settings, those of the variant it builds on included."""
    own = dict(variants[name])
    base = own.pop("like", None)
    return {**(settings_of(variants, base) if base else {}), **own}


def run_all(given: argparse.Namespace, study: dict[str, Any]) -> None:
    """Every run of this part that the output has not yet."""
    part, parts = map(int, given.part.split("/"))
    variants = study["variants"]
    wanted = [
        (FIRST_SEED + draw, task, name)
        for draw in range(study["draws"])
        for task in study["tasks"]
        for name in variants
    ]
    for number, (seed, task, name) in enumerate(wanted):
        settings = settings_of(variants, name)
        about = (task, seed, json.dumps(settings, sort_keys=True))
        if number % parts != part - 1 or about in done(given.output):
            continue
        changes = {"test_examples": 1000, **{key: value for key, value in settings.items() if key != "layers"}}
        data = development_data(given.data, task, given.work / f"part-{part}")
        problem = Problem(study["backbone"], data, task, seed, changes, "train.jsonl")
        started = time.monotonic()
        set_seed(seed)
        row = train_network(problem, build(problem, settings), seed, given.work / f"part-{part}")
        row |= {"seconds": round(time.monotonic() - started, 1), "amx": torch.backends.cpu.get_cpu_capability()}
        append_json_line(given.output, {"variant": name, "task": task, "seed": seed, "settings": settings, **row})
        print(json.dumps({"variant": name, "task": task, "seed": seed, **row}), flush=True)


def development_data(data: Path, task: str, work: Path) -> Path:
    """The folder of a task's training data, without the test data that the studies split off from them (MR)."""
    if task not in CARVED or CARVED[task][0] != "test":
        return data
    carve(data / task / "train.jsonl", work / "development" / task, *CARVED[task])
    return work / "development"


def done(output: Path) -> set[tuple[str, int, str]]:
    """Task, seed and settings of the runs that were made."""
    rows = read_json_lines(output)
    return {(row["task"], row["seed"], json.dumps(row["settings"], sort_keys=True)) for row in rows}


def report(given: argparse.Namespace, study: dict[str, Any]) -> None:
    """Print the table."""
    variants = study["variants"]
    found: dict[str, dict[Key, float]] = defaultdict(dict)
    for row in read_json_lines(given.output):
        for name in variants:
            if row["settings"] == settings_of(variants, name):
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder a task, as for subsets.py")
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", default="1/1", help="which share of the runs, such as 1/2, for several processes")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"), help="folder for cached states")
    parser.add_argument("--report", action="store_true", help="only print the table")
    given = parser.parse_args()
    study = yaml.safe_load(given.settings.read_text())
    if not given.report:
        torch.set_num_threads(1)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        run_all(given, study)
    report(given, study)


if __name__ == "__main__":
    main()
