"""Runs that several processes share, as `torchrun` and `accelerate launch` start them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from fit_in_processes import fit_all
from packaging.version import Version
from transformers import AutoModelForMaskedLM

from sptune.errors import InputError
from sptune.runs.launch import check_launch, check_search_launch

SCRIPT = Path(__file__).with_name("fit_in_processes.py")
Runs = list[tuple[dict[str, Any], int | None]]
# Steps after which runs are interrupted: after the 20 of the linear probe, and then after the 10 of the search.
IN_SEARCH, IN_TRAINING = 25, 45
# Earlier versions cannot resume in several processes on CPUs.
RESUMES = Version(transformers.__version__) >= Version("5.18")
# Runs with other losses, smaller batches or another dtype than the first one.
VARIANTS: dict[str, dict[str, Any]] = {
    "focal loss": {"loss": "focal", "class_weights": {"good": 3.0}, "gradient_accumulation_steps": 2},
    "bf16": {"bf16": True, "max_steps": 8},
}
TOLERANCE = 1e-4
# Matrix products of batches of other sizes are rounded otherwise, in bfloat16 by up to 2^-9 of their values.
TOLERANCES = {"bf16": 2.0**-8}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, masked_lm: str, data: dict[str, str]) -> dict[str, Any]:
    """A run without dropout, of which each process draws its own; an epoch ends with an incomplete batch."""
    folder = tmp_path_factory.mktemp("calm")
    shutil.copytree(masked_lm, folder, dirs_exist_ok=True)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    AutoModelForMaskedLM.from_pretrained(folder, **dropout).save_pretrained(folder)
    steps = {"search_steps": 10, "max_steps": 20, "batch_size": 20}
    return {
        **data, **steps, "model": str(folder), "bottleneck_dim": 4, "searcher": "fair", "num_prompt_layers": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit_all([({**options, "output_dir": str(folder)}, None)])
    return folder


def fit_in(processes: int, runs: Runs, folder: Path, **environment: str) -> None:
    """Does the runs, one after another, in several processes."""
    listed = folder / "runs.json"
    listed.write_text(json.dumps(runs))
    # Transformers 4 leaves the dtype of this process's last training in the environment.
    own = {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(listed)],
        env={**os.environ, **own, **environment}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> Path:
    """A folder of runs in two processes, all of one launch, and of those in one process beside them."""
    folder = tmp_path_factory.mktemp("two")
    fit_all([({**options, "output_dir": str(folder / "by-one")}, IN_SEARCH)])
    shared = {**options, "batch_size": 10}
    runs: Runs = [
        ({**shared, "output_dir": str(folder / "both")}, None),
        ({**shared, "output_dir": str(folder / "by-two")}, IN_TRAINING),
    ]
    if RESUMES:
        runs.append(({"output_dir": str(folder / "by-one"), "resume": True}, None))
    for name, more in VARIANTS.items():
        size = options["batch_size"] // more.get("gradient_accumulation_steps", 1)
        own = {**options, **more, "batch_size": size}
        fit_all([({**own, "output_dir": str(folder / f"{name} whole")}, None)])
        runs.append(({**own, "batch_size": size // 2, "output_dir": str(folder / name)}, None))
    fit_in(2, runs, folder)
    return folder


def results(run: Path) -> dict[str, Any]:
    """Everything that a run found, as far as it is not a time."""
    metrics, search = (json.loads((run / name).read_text()) for name in ("metrics.json", "search.json"))
    metrics["baseline"].pop("pooling_seconds")
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return {
        "metrics": {name: metrics[name] for name in ("prompt_layers", "baseline", "train", "validation", "test")},
        "texts": [row["text"] for row in predictions],
        "probabilities": [row["scores"]["good"] for row in predictions],
        "search scores": search["scores"],
        "search losses": [entry["loss"] for entry in search["history"]],
        "losses": [entry.popitem()[1] for entry in json.loads((run / "training_history.json").read_text())],
    }


def assert_same(run: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    found = results(run)
    for name, value in results(expected).items():
        same = found[name] == (value if name in ("metrics", "texts") else pytest.approx(value, abs=tolerance))
        assert same, f"{name}: {found[name]} instead of {value}"


def test_any_number_of_processes_gives_the_same_run_and_goes_on_with_it(whole: Path, two: Path, tmp_path: Path) -> None:
    assert_same(two / "both", whole)
    by_four = tmp_path / "by-four"
    shutil.copytree(two / "by-two", by_four)
    fit_all([({"output_dir": str(two / "by-two"), "resume": True}, None)])
    assert_same(two / "by-two", whole)
    go_on: Runs = [({"output_dir": str(by_four), "resume": True}, None)]
    if not RESUMES:
        with pytest.raises(AssertionError, match=r"needs transformers 5\.18.*resume in one process"):
            fit_in(4, go_on, tmp_path)
        return
    fit_in(4, go_on, tmp_path)
    assert_same(by_four, whole)
    assert_same(two / "by-one", whole)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_two_processes_share_the_run_of_one_with(two: Path, name: str) -> None:
    assert_same(two / name, two / f"{name} whole", TOLERANCES.get(name, TOLERANCE))


def test_two_processes_compile_the_run_of_one(whole: Path, options: dict[str, Any], tmp_path: Path) -> None:
    """As after `accelerate launch --dynamo_backend`; the backend "eager" only traces, and needs no C++ compiler."""
    run = {**options, "batch_size": 10, "output_dir": str(tmp_path / "run")}
    fit_in(2, [(run, None)], tmp_path, ACCELERATE_DYNAMO_BACKEND="EAGER")
    assert_same(tmp_path / "run", whole)


def test_another_number_of_examples_in_a_step_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["processes"] == 1
    (folder / "config.yaml").write_text(yaml.safe_dump({**written, "processes": 2, "batch_size": 7}))
    (folder / "metrics.json").unlink()
    with pytest.raises(InputError, match="batch_size was 14 and is now 20"):
        fit_all([({"output_dir": str(folder), "resume": True, "batch_size": 20}, None)])


def test_a_launcher_that_starts_one_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="torchrun --nproc-per-node"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launch()


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharding_that_would_not_happen_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], tmp_path: Path, variable: str
) -> None:
    """Accelerate ignores it on CPUs, and its name would stand for what is plain data parallelism."""
    monkeypatch.setenv(variable, "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(InputError, match="On CPUs Accelerate ignores it"):
        fit_all([({**options, "output_dir": str(tmp_path / "run")}, None)])
    with pytest.raises(InputError, match="sptune train --prompt-layers"):
        check_search_launch()
    assert not (tmp_path / "run").exists()
