"""Measures how the cost of a step, of a search and of reading data grows with layers, width, length, rows and adapters.

    python benchmarks/scale.py --output benchmarks/results/scale.jsonl    # about 15 minutes on one core; can be resumed
    python benchmarks/scale.py --output benchmarks/results/scale.jsonl --part 1/2

Backbones are BERTs with random weights, which take as long as trained ones. Times are processor time of one thread
(OMP_NUM_THREADS=1), which other load changes little; memory of a step is that of its activations and gradients, as
PyTorch's profiler counts it, and memory of data is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from resumable_runs import Row, freeze, take_part, write_missing_rows
from speed import PROMPTS, Method, copy_sharing_weights, peak_bytes, random_batches, spt, trained
from sptune import SPTConfig
from sptune.runs.output_folder import read_json_lines
from sptune.runs.peak_memory import peak_memory
from sptune.tasks import Task, TaskEncoder, load_splits

ROUNDS = 3
SEED_WORDS = 2000


@dataclass(frozen=True)
class Shape:
    """What is measured: a backbone's shape and a batch.

    Attributes:
        axis: what varies in the table that it belongs to.
        layers: blocks.
        width: hidden size.
        length: tokens of a text.
        batch: texts.
    """

    axis: str
    layers: int = 12
    width: int = 128
    length: int = 64
    batch: int = 4


SHAPES = [
    *(Shape("layers", layers=layers) for layers in (6, 12, 24, 48)),
    *(Shape("width", width=width) for width in (128, 256, 512, 1024)),
    *(Shape("length", layers=6, length=length, batch=1) for length in (64, 128, 256, 512, 1024, 2048)),
]
ROWS = (1_000, 10_000, 100_000, 1_000_000)
ADAPTERS = (1, 4, 16, 64)


def backbone(shape: Shape) -> nn.Module:
    """A BERT of a shape, with random weights and without dropout."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=SEED_WORDS, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // 64, intermediate_size=4 * shape.width, max_position_embeddings=2048,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval().requires_grad_(False)


def processor_seconds(run: Callable[[], Any]) -> float:
    """The processor time that `run` takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


def search_network(model: nn.Module) -> Method:
    """A step of the default search: every example through a discrete network of its own."""
    network: Any = get_peft_model(copy_sharing_weights(model), SPTConfig(task_type="SEQ_CLS", **PROMPTS["add"]))
    method, candidates = trained("search", network), len(network.base_model.generator_layers)
    plain, noise = method.step, torch.Generator().manual_seed(0)

    def step(batch: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        gates = torch.randint(2, (len(rows), candidates), generator=noise).float()
        with network.base_model.gating(gates):
            plain(batch, rows)

    method.step = step
    return method


def measure_step(shape: Shape) -> Row:
    """Processor time and memory of a step with prompts from the middle layer on, of the search, and of LoRA."""
    model = backbone(shape)
    batches = random_batches(SEED_WORDS, shape.batch, shape.length)[:1]
    middle = shape.layers // 2
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    methods = {
        "prompts": spt(model, middle, False, batches, "add"),
        "prompts, cached": spt(model, middle, True, batches, "add"),
        "search": search_network(model),
        "LoRA": trained("LoRA", get_peft_model(copy_sharing_weights(model), lora)),
    }
    rows, seconds, memory = torch.arange(shape.batch), {}, {}
    for name, method in methods.items():
        step = partial(method.step, batches[0], rows)
        step()  # fills the cache, and warms up
        seconds[name] = round(statistics.median(processor_seconds(step) for _ in range(ROUNDS)), 5)
        memory[name] = round(peak_bytes(step) / 1e6, 2)
    return {
        "kind": "step", **dataclasses.asdict(shape),
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "processor_seconds": seconds, "memory_mb": memory, **about(),
    }  # fmt: skip


def measure_adapters(number: int) -> Row:
    """Processor time of a forward over a batch whose rows belong to this many adapters, and what an adapter holds."""
    shape = Shape("adapters", layers=6, batch=64)
    model: Any = get_peft_model(
        backbone(shape), SPTConfig(task_type="SEQ_CLS", prompt_layers=[2, 3, 4, 5], **PROMPTS["add"]), "a0"
    )
    config = model.peft_config["a0"]
    for other in range(1, number):
        model.add_adapter(f"a{other}", config)
    batch = random_batches(SEED_WORDS, shape.batch, shape.length)[0]
    names = [f"a{row % number}" for row in range(shape.batch)]
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(**batch, adapter_names=names)

    forward()
    own = sum(parameter.numel() for name, parameter in model.named_parameters() if ".a0." in f"{name}.")
    seconds = round(statistics.median(processor_seconds(forward) for _ in range(ROUNDS)), 5)
    return {"kind": "adapters", "adapters": number, "processor_seconds": seconds, "adapter_weights": own, **about()}


# -- data ---------------------------------------------------------------------------------------------------------


def write_rows(path: Path, number: int) -> None:
    """Texts of 20 words with one of two labels."""
    draw = random.Random(0)
    words = [f"word{index}" for index in range(SEED_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for index in range(number):
            row = {"text": " ".join(draw.choices(words, k=20)), "label": ("bad", "good")[index % 2]}
            file.write(json.dumps(row) + "\n")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    words = ["[PAD]", "[UNK]", *(f"word{index}" for index in range(SEED_WORDS))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def _peak_mb() -> float:
    peak = peak_memory()
    if peak is None:
        raise RuntimeError("This system does not tell how much memory a process has used; run this part on another.")
    return peak / 1e6


def read_rows(path: str) -> None:
    """Read, check and tokenize a file as a run does, and print processor time and memory; in a process of its own."""
    peak = [_peak_mb()]
    seconds = {}

    def measure(name: str, run: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = run()
        seconds[name] = round(time.process_time() - started, 2)
        peak.append(_peak_mb())
        return result

    labels, splits = measure("read", lambda: load_splits(train_file=path))
    task = Task("scale", "classifier", ("text",), "label", labels)
    encoder = TaskEncoder(task, word_tokenizer(), max_length=64, causal=False)
    measure("tokenize", lambda: [encoder.encode(one) for one in (splits.train, splits.validation, splits.test)])
    read, tokenize = (round(after - before, 1) for before, after in pairwise(peak))
    print(json.dumps({"processor_seconds": seconds, "memory_mb": {"read": read, "tokenize": tokenize}}))


def measure_rows(number: int) -> Row:
    """What reading, checking and tokenizing a file of this many rows takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write_rows(path, number)
        command = [sys.executable, __file__, "--read", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        size = path.stat().st_size
    return {"kind": "rows", "rows": number, "file_mb": round(size / 1e6, 1), **json.loads(done.stdout), **about()}


# -- results ------------------------------------------------------------------------------------------------------


def about() -> Row:
    """On what a row was measured."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 1),
    }


def runs() -> Iterator[tuple[str, Callable[[], Row]]]:
    """All measurements with their keys, the quick ones first."""
    for shape in SHAPES:
        yield freeze({"kind": "step", **dataclasses.asdict(shape)}), partial(measure_step, shape)
    for number in ADAPTERS:
        yield freeze({"kind": "adapters", "adapters": number}), partial(measure_adapters, number)
    for number in ROWS:
        yield freeze({"kind": "rows", "rows": number}), partial(measure_rows, number)


def key_of(row: Row) -> str:
    """The key of the measurement that wrote a row."""
    fields = {
        "step": ("kind", *(field.name for field in dataclasses.fields(Shape))),
        "adapters": ("kind", "adapters"),
        "rows": ("kind", "rows"),
    }
    return freeze({name: row[name] for name in fields[row["kind"]]})


def plot(rows: list[Row], path: Path) -> None:
    """Draw the processor time of a step by layers, width and length, on scales of powers of two."""
    panels = []
    for axis in ("layers", "width", "length"):
        points = [
            {axis: row[axis], "method": method, "ms": 1000 * seconds}
            for row in rows
            if row["kind"] == "step" and row["axis"] == axis
            for method, seconds in row["processor_seconds"].items()
        ]
        scale = alt.Scale(type="log", base=2, nice=False)
        panels.append(
            alt.Chart(alt.Data(values=points), width=220, height=220)
            .mark_line(point=True)
            .encode(
                x=alt.X(f"{axis}:Q", scale=scale, axis=alt.Axis(values=sorted({point[axis] for point in points}))),
                y=alt.Y("ms:Q", scale=scale, title="processor time of a step, ms"),
                color=alt.Color("method:N", title=None),
            )
        )
    alt.hconcat(*panels).save(str(path), scale_factor=2)


def main() -> None:
    """Measure what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="The .jsonl file of rows.")
    parser.add_argument("--plot", type=Path, help="Draw the rows of steps into this .png or .svg file.")
    parser.add_argument("--part", default="1/1", help="Do a part of the measurements, such as 1/2.")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_rows(arguments.read)
        return
    if arguments.output is None:
        parser.error("--output is missing: name the .jsonl file of rows.")
    write_missing_rows(arguments.output, take_part(runs(), arguments.part), key_of)
    if arguments.plot:
        plot(read_json_lines(arguments.output), arguments.plot)


if __name__ == "__main__":
    main()
