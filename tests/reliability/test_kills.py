"""Runs and comparisons that are killed at random moments and resumed end as if nothing had happened.

`make campaign` kills 150 times, and servers (test_killed_servers.py) 50 times; the test suite does a tenth of it. A
moment is drawn between the start of a process and its end, so that some kills come before the run began and some while
its results are written.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.campaign import share

SCRIPT = Path(__file__).with_name("journaled_run.py")
# Evaluations, and with them checkpoints, are this number of steps apart.
INTERVAL = 4
KILLS, KILLS_PER_RUN = 50, 5
# Seconds between the event that is waited for and the kill, at most; steps of the tiny model take some milliseconds.
DELAYS = (0.0, 0.02, 0.5)
SEARCHED = (
    "train_file", "validation_file", "test_file", "model", "bottleneck_dim", "batch_size", "search_steps", "searcher",
)  # fmt: skip
# What a row of a comparison says of its run, besides what it cost.
RESULTS = (
    "task", "method", "settings", "seed", "learning_rate", "tuning", "state", "score", "validation", "test",
    "prompt_layers", "steps", "parameters",
)  # fmt: skip


@pytest.fixture(scope="module")
def options(data: dict[str, str], masked_lm: str) -> dict[str, Any]:
    small = {"bottleneck_dim": 4, "batch_size": 8, "search_steps": 16, "max_steps": 12}
    return {**data, **small, "model": masked_lm, "searcher": "fair", "eval_steps": INTERVAL, "linear_probe": False}


@pytest.fixture(scope="module")
def study(data: dict[str, str], masked_lm: str) -> dict[str, Any]:
    """Two methods with two seeds, one of them with two learning rates to choose from."""
    spt = {"bottleneck_dim": 4, "searcher": "fair", "search_steps": 4, "learning_rates": 1e-2}
    return {
        "methods": {"spt": spt, "lora": {"learning_rates": [1e-3, 1e-2]}},
        "tasks": {"words": data},
        "options": {"model": masked_lm, "max_steps": 4, "batch_size": 8},
        "seeds": [0, 1],
    }


class Process:
    """A run or a comparison in a process of its own."""

    def __init__(self, verb: str, options: dict[str, Any], folder: Path) -> None:
        self.verb, self.options, self.folder = verb, options, folder
        self.journal = folder.with_suffix(".journal")

    def start(self) -> subprocess.Popen[str]:
        """Begin, or go on."""
        options = {"study": self.options} if self.verb == "compare" else self.options
        if self.verb != "compare" and (self.folder / "config.yaml").exists():
            options = {"resume": True}
        file = self.folder.with_suffix(".json")
        file.write_text(json.dumps({**options, "output_dir": str(self.folder)}))
        command = [sys.executable, str(SCRIPT), self.verb, str(file), str(self.journal)]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def files(self) -> set[str]:
        """The paths of all that is in the folder."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def done_again(self) -> Iterator[int]:
        """For each start, how much of what had been begun was done again: steps of a training, runs of a comparison."""
        lines = [line.partition(" ")[::2] for line in self.journal.read_text().splitlines()]
        return _runs_done_again(lines) if self.verb == "compare" else _steps_done_again(lines)


def _steps_done_again(lines: list[tuple[str, str]]) -> Iterator[int]:
    most: dict[str, int] = {}
    stage, step = "", 0
    for kind, rest in lines:
        if kind == "stage":
            stage, step = rest, 0
        elif kind == "resumed":
            step = int(rest)
        elif kind == "step":
            if step < most.get(stage, 0):
                yield most.pop(stage) - step
            step += 1
            most[stage] = max(step, most.get(stage, 0))


def _runs_done_again(lines: list[tuple[str, str]]) -> Iterator[int]:
    begun: set[str] = set()
    there: set[str] = set()
    again = 0
    for kind, rest in lines:
        if kind == "start":
            yield again
            again = 0
        elif kind == "there":
            there = set(rest.split())
        elif kind == "began":
            assert rest not in there
            again += rest in begun
            begun.add(rest)
    yield again


def results(verb: str, folder: Path) -> Any:
    """What must be the same, whatever happened on the way."""
    if verb == "compare":
        lines = (folder / "runs.jsonl").read_text().splitlines()
        rows = {row["run"]: {name: row.get(name) for name in RESULTS} for row in map(json.loads, lines)}
        assert len(rows) == len(lines)
        return rows, [line["scores"] for line in json.loads((folder / "summary.json").read_text())]
    search = json.loads((folder / "search.json").read_text())
    if verb == "search":
        return search["prompt_layers"], [round(score, 5) for score in search["scores"]]
    metrics = json.loads((folder / "metrics.json").read_text())
    return search["prompt_layers"], metrics["test"], (folder / "predictions.jsonl").read_text()


def kill_at(process: subprocess.Popen[str], journal: Path, events: int, delay: float) -> bool:
    """Kill a process group some seconds after it has written so many events; returns False if it ended before."""
    goal = events + (journal.read_bytes().count(b"\n") if journal.exists() else 0)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= goal):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert killed or process.returncode == 0, errors
    return killed


@pytest.mark.parametrize("verb", ["fit", "search", "compare"])
def test_killed_runs_go_on(
    verb: str, options: dict[str, Any], study: dict[str, Any], record: Callable[..., None], tmp_path: Path
) -> None:
    given = {"fit": options, "search": {name: options[name] for name in SEARCHED}, "compare": study}[verb]
    whole = Process(verb, given, tmp_path / "whole")
    whole.finish()
    expected, files = results(verb, whole.folder), whole.files()
    assert not [name for name in files if "partial" in name]
    events = whole.journal.read_text().count("\n")
    draw, killed, again = random.Random(0), 0, 0
    for number in itertools.count():
        run = Process(verb, given, tmp_path / f"run{number}")
        for _ in range(KILLS_PER_RUN):
            if killed < share(KILLS):
                delay = draw.choice(DELAYS) * draw.random()
                killed += kill_at(run.start(), run.journal, draw.randrange(events), delay)
        run.finish()
        assert results(verb, run.folder) == expected
        assert run.files() == files
        again = max(again, *run.done_again(), 0)
        if killed >= share(KILLS):
            break
    unit, most = ("run", 1) if verb == "compare" else ("step", INTERVAL)
    assert again <= most
    record(f"kill -9: {verb}", kills=killed, runs=number + 1, done_again=again, at_most=most, unit=unit)
