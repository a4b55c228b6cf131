"""Compares prompts with LoRA on instruction data: held-out loss and training time, side by side in one process.

    python benchmarks/instruction.py --data data --output benchmarks/results/instruction.jsonl

SmolLM2-135M-Instruct in bfloat16 learns the conversations of instruction_data.py; loss on the assistant's turn only.
`spt` has the defaults of `sptune fit --task-kind generate`: four evenly spaced layers (500 examples are too few for a
search) and r = 64; beside it stands r = 4, the default of tasks with classes. LoRA has r=8 on query and value. Widths
and learning rates are the best of those tried on other conversations, drawn with a development seed. All take 60 steps
of batch 16. `spt` trains with sptune's SPTTrainer, which caches the frozen lower layers and computes logits only where
a label is predicted. LoRA trains twice: with transformers' Trainer, as its users do, and with SPTTrainer, which can
save it the logits but no layers. A seed draws the conversations and the initialization. Times are of the
processor, of one thread, so that other processes hardly change them. Each run is one line of the output and is never
repeated.

Rows without "trainer" are from before SPTTrainer left out logits; their losses count, their times do not. Rows of `spt`
without "bottleneck_dim" have r = 4.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from instruction_data import write_conversations
from resumable_runs import Row, write_missing_rows
from sptune import SPTConfig, SPTTrainer
from sptune.config import default_candidates
from sptune.modeling.loading import BackboneSpec, load_backbone, load_tokenizer
from sptune.prompt_config import DEFAULT_BOTTLENECK_DIM, DEFAULT_NUM_PROMPT_LAYERS, GENERATION_BOTTLENECK_DIM
from sptune.runs.output_folder import read_json_lines, versions
from sptune.search.layer_selection import evenly_spaced
from sptune.tasks.data.generation_data import read_prompts
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_metrics import loss_metrics
from sptune.tasks.generation_task import GenerationTask
from sptune.tasks.text_generation import measure_losses
from sptune.training.data_order import grouping_by_length
from subsets import smollm2

STEPS, BATCH_SIZE, MAX_LENGTH = 60, 16, 256
SEEDS, DEVELOPMENT_SEED = (0, 1, 2), 100
# A method is named with r where it has one.
Method = tuple[str, int | None]
LORA: Method = ("lora", None)
NARROW: Method = ("spt", DEFAULT_BOTTLENECK_DIM["add"])
DEFAULT: Method = ("spt", GENERATION_BOTTLENECK_DIM)
RATES: dict[Method, tuple[float, ...]] = {
    NARROW: (5e-3, 1e-2, 2e-2),
    ("spt", 16): (5e-3, 1e-2),
    ("spt", 32): (5e-3,),
    DEFAULT: (2.5e-3, 5e-3, 1e-2),
    ("spt", 128): (5e-3,),
    LORA: (1e-3, 3e-3, 6e-3),
}
TRAINERS: dict[str, type[Trainer]] = {"sptune": SPTTrainer, "transformers": Trainer}


class Timer(TrainerCallback):
    """Measures the processor time of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(time.process_time() - self.begun)


def attach(method: Method, backbone: Any) -> PeftModel:
    """The backbone with a method's parameters."""
    if method == LORA:
        targets = ["q_proj", "v_proj"]
        return get_peft_model(backbone, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=targets))
    candidates = default_candidates(backbone.config.num_hidden_layers, "add")
    layers = evenly_spaced(candidates, DEFAULT_NUM_PROMPT_LAYERS["add"])
    return get_peft_model(backbone, SPTConfig(task_type="CAUSAL_LM", prompt_layers=layers, bottleneck_dim=method[1]))


def row_of(data: Path, method: Method, seed: int, learning_rate: float, kind: str) -> Row:
    """Train a method with a kind of trainer and measure it; returns its row."""
    source = smollm2("bfloat16")
    tokenizer = load_tokenizer(source)
    task = GenerationTask.of_messages("instruction")
    encoder = GenerationEncoder(task, tokenizer, max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        files = write_conversations(data, Path(folder), seed)
        train, test = (read_prompts(files[f"{name}_file"], task) for name in ("train", "test"))
        set_seed(seed)
        network = attach(method, load_backbone(BackboneSpec(source, "causal_lm"), tokenizer)[0])
        timer = Timer()
        trainer = TRAINERS[kind](
            network,
            TrainingArguments(
                folder,
                max_steps=STEPS,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=learning_rate,
                weight_decay=0.01,
                warmup_steps=round(0.06 * STEPS),
                lr_scheduler_type="linear",
                max_grad_norm=1.0,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
                label_names=["labels"],
                use_cpu=not torch.cuda.is_available(),
                **grouping_by_length(),
            ),
            train_dataset=encoder.encode(train),
            data_collator=encoder.collator,
            callbacks=[timer],
        )
        started, begun = time.process_time(), time.monotonic()
        trainer.train()
        seconds, elapsed = time.process_time() - started, time.monotonic() - begun
        measured = loss_metrics(measure_losses(network.eval(), encoder, test, lambda: None))
    tuner: Any = network.base_model
    return {
        "method": method[0],
        "bottleneck_dim": method[1],
        "seed": seed,
        "learning_rate": learning_rate,
        "trainer": kind,
        "loss": round(measured["loss"], 5),
        "train_seconds": round(seconds, 1),
        "elapsed_seconds": round(elapsed, 1),
        "step_seconds": round(statistics.median(timer.steps), 4),
        "prompt_layers": tuner.generator_layers if method != LORA else None,
        "parameters": network.get_nb_trainable_parameters()[0],
        "test_examples": len(test),
        "steps": STEPS,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def zero_shot_row(data: Path, seed: int) -> Row:
    """The loss of the bare backbone."""
    source = smollm2("bfloat16")
    tokenizer = load_tokenizer(source)
    task = GenerationTask.of_messages("instruction")
    encoder = GenerationEncoder(task, tokenizer, max_length=MAX_LENGTH)
    backbone = load_backbone(BackboneSpec(source, "causal_lm"), tokenizer)[0].eval()
    with tempfile.TemporaryDirectory() as folder:
        test = read_prompts(write_conversations(data, Path(folder), seed)["test_file"], task)
    loss = loss_metrics(measure_losses(backbone, encoder, test, lambda: None))["loss"]
    return {"method": "zero-shot", "seed": seed, "learning_rate": None, "loss": round(loss, 5), "parameters": 0}


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells runs apart; losses, for which alone the runs of the development seed are, depend on no trainer."""
    kind = None if row["seed"] == DEVELOPMENT_SEED or row["method"] == "zero-shot" else row.get("trainer", "before")
    return *method_of(row), row["seed"], row["learning_rate"], kind


def method_of(row: Row) -> Method:
    """The method that a row is of."""
    return row["method"], row.get("bottleneck_dim", NARROW[1]) if row["method"] == "spt" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder per task")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)

    def write(method: Method, seed: int, rate: float, kind: str) -> None:
        run = functools.partial(row_of, given.data, method, seed, rate, kind)
        key = (*method, seed, rate, None if seed == DEVELOPMENT_SEED else kind)
        write_missing_rows(given.output, [(key, run)], key_of)

    for method, rates in RATES.items():
        for rate in rates:
            write(method, DEVELOPMENT_SEED, rate, "sptune")
    rows = [row for row in read_json_lines(given.output) if row["seed"] == DEVELOPMENT_SEED]
    tuned = {method_of(row): row["learning_rate"] for row in sorted(rows, key=lambda row: -row["loss"])}
    for seed in SEEDS:
        write(DEFAULT, seed, tuned[DEFAULT], "sptune")
        write(LORA, seed, tuned[LORA], "transformers")
        write(LORA, seed, tuned[LORA], "sptune")
        write(NARROW, seed, tuned[NARROW], "sptune")
        zero_shot = functools.partial(zero_shot_row, given.data, seed)
        write_missing_rows(given.output, [(("zero-shot", None, seed, None, None), zero_shot)], key_of)


if __name__ == "__main__":
    main()
