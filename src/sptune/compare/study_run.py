"""One run of a study: train, measure, and describe it in one row; a failure is a row too."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import shutil
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sptune.compare.methods import LINEAR_PROBE, ZERO_SHOT
from sptune.compare.networks import attach, saved_bytes, trained_parameters
from sptune.compare.run_spec import Row, RunSpec
from sptune.modeling.loading import CLASSIFIER
from sptune.runs import output_folder as outputs
from sptune.runs import stages
from sptune.runs.job import load
from sptune.runs.peak_memory import peak_memory
from sptune.runs.plan import prepare
from sptune.runs.processes import on_cpu, processes
from sptune.runs.progress import Monitor
from sptune.runs.stage_trainers import evaluate_splits

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


class Timer(TrainerCallback):
    """Measures how long each optimizer step takes."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._begun = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step begins."""
        self._begun = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done, once the device is."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.monotonic() - self._begun)


def execute(spec: RunSpec, folder: str | Path) -> Row:
    """Do a run and describe it.

    Args:
        spec: the run.
        folder: of its own; what an interrupted run left in it is removed first, and the folder in the end.

    Returns:
        `run` (its id), `task`, `method`, `settings`, `seed`, `learning_rate`, `tuning`, `state` ("done", "failed" or
        "skipped") and `versions`; of a failed one `error` and `traceback`; of one that is done `score` (the task's, on
        development data), `validation` and, unless it is for tuning, `test`; `parameters`, `prompt_layers`,
        `from_layer`, `seconds` (of the search, all steps of the training, both, and a step), `steps`, `peak_memory`,
        `adapter_bytes`, and `device`, `processor` (with its threads) and `bf16`: on what it was computed, and whether
        with autocast to bfloat16.
    """
    folder = Path(folder)
    # Continuing would save little, and neither times nor what AdaLoRA knows of its ranks outlive an interruption.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with _peak_memory() as peak:
            measured = _measured(spec, folder)
        if measured["state"] == DONE:
            measured["peak_memory"] = peak.get("bytes")
        row = {**_about(spec), **measured, "versions": outputs.versions()}
    except Exception as error:
        row = failed(spec, error)
    shutil.rmtree(folder, ignore_errors=True)
    return row


def failed(spec: RunSpec, error: BaseException) -> Row:
    """The row of a run that ended with this error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return {
        **_about(spec),
        "state": FAILED,
        "error": f"{type(error).__name__}: {lines[0]}",
        "traceback": "".join(traceback.format_exception(error)).splitlines()[-12:],
        "versions": outputs.versions(),
    }


def _about(spec: RunSpec) -> Row:
    return {
        "run": spec.id,
        "task": spec.task,
        "method": spec.name,
        "settings": {"method": spec.method.name, **spec.method.settings},
        "seed": spec.seed,
        "learning_rate": spec.learning_rate,
        "tuning": spec.tuning,
    }


def _measured(spec: RunSpec, folder: Path) -> Row:
    plan = prepare("compare", spec.run_options(folder), Quiet())
    is_classifier = plan.spec.head == CLASSIFIER
    if spec.method.kind in (LINEAR_PROBE, ZERO_SHOT) and is_classifier != (spec.method.kind == LINEAR_PROBE):
        needs, has = ("a classifier", "read from label words") if not is_classifier else ("label words", "a classifier")
        return {"state": SKIPPED, "error": f"{spec.name} needs {needs}, and {spec.task} is {has}."}
    job = load(plan)
    splits = ("validation",) if spec.tuning else ("validation", "test")
    timer = Timer()
    network = None
    if spec.method.kind in (LINEAR_PROBE, ZERO_SHOT):
        results = (stages.linear_probe if is_classifier else stages.zero_shot)(job, splits, [timer])
        parameters = {"trainable": results["parameters"], "added": 0}
        size = 4 * results["parameters"]
    else:
        network = attach(spec.method, job)
        parameters = trained_parameters(network.module, job)
        title = f"Training {spec.name} on {spec.task}"
        trainer = stages.train_network(job, network.module, title, [timer, *network.callbacks])
        results = evaluate_splits(job, trainer, job.encoded, splits)
        size = saved_bytes(network.module, folder / outputs.ADAPTER_FOLDER)
    device = processes().device.type
    search_seconds = plan.clock.seconds.get("search", 0.0)
    train_seconds = results.get("pooling_seconds", 0.0) + sum(timer.steps)
    return {
        "state": DONE,
        "score": results["validation"]["score"],
        **{name: results[name] for name in splits},
        "parameters": parameters,
        "prompt_layers": network.prompt_layers if network else None,
        "from_layer": network.from_layer if network else None,
        "seconds": {
            "search": round(search_seconds, 2),
            "train": round(train_seconds, 2),
            "total": round(search_seconds + train_seconds, 2),
            "step": round(statistics.median(timer.steps), 5) if timer.steps else 0.0,
        },
        "steps": len(timer.steps),
        "adapter_bytes": size,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": ", ".join(
            (_processor(), torch.backends.cpu.get_cpu_capability(), f"threads: {torch.get_num_threads()}")
        ),
        "bf16": plan.options.bf16,
    }


def _processor() -> str:
    """The CPU's model and whether it has AMX, which makes bfloat16 much faster, as far as the system tells."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            field, _, value = line.partition(":")
            told.setdefault(field.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags", "").split()
    return f"{name} {'with' if 'amx_bf16' in flags else 'without'} AMX" if "avx512f" in flags else name


class Quiet(Monitor):
    """Says nothing: a study shows its runs as wholes."""

    def stage(self, title: str, steps: int | None = None) -> None:
        """A stage begins."""

    def note(self, text: str) -> None:
        """Something to read."""


@contextlib.contextmanager
def _peak_memory() -> Iterator[dict[str, int]]:
    """The most memory in use inside the block, in bytes: the GPU's, or the process's where there is none.

    It stays empty where the system does not tell.
    """
    found: dict[str, int] = {}
    gc.collect()
    if torch.cuda.is_available() and not on_cpu():
        torch.cuda.reset_peak_memory_stats()
        yield found
        found["bytes"] = peak_memory() or 0
        return
    # Linux: give back what runs before have freed, and forget their peaks.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    if (peak := peak_memory()) is not None:
        found["bytes"] = peak
