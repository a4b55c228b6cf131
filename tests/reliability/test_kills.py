"""Runs that are killed at random moments and resumed end as if nothing had happened.

`make campaign` kills 200 times, the test suite a tenth of it. A moment is drawn between the start of a process and its
end, so that some kills come before the run began and some while its results are written.
"""

import contextlib
import itertools
import json
import random
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
KILLS, KILLS_PER_RUN = 80, 4
# Seconds between the event that is waited for and the kill, at most; steps of the tiny model take some milliseconds.
DELAYS = (0.0, 0.02, 0.5)


@pytest.fixture(scope="module")
def options(data: dict[str, str], masked_lm: str) -> dict[str, Any]:
    small = {"bottleneck_dim": 4, "batch_size": 8, "search_steps": 16, "max_steps": 12}
    return {**data, **small, "model": masked_lm, "searcher": "fair", "eval_steps": INTERVAL, "linear_probe": False}


class Process:
    """A run in a process of its own."""

    def __init__(self, verb: str, options: dict[str, Any], folder: Path) -> None:
        self.verb, self.folder = verb, folder
        self.options = options if verb == "fit" else {k: v for k, v in options.items() if k in SEARCHED}
        self.journal = folder.with_suffix(".journal")

    def start(self) -> subprocess.Popen[str]:
        """Begin the run, or go on with it."""
        begun = (self.folder / "config.yaml").exists()
        options = {"resume": True} if begun else self.options
        file = self.folder.with_suffix(".json")
        file.write_text(json.dumps({**options, "output_dir": str(self.folder)}))
        command = [sys.executable, str(SCRIPT), self.verb, str(file), str(self.journal)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def steps_done_again(self) -> Iterator[int]:
        """For each training that was begun more than once, how many of its steps were done again."""
        most: dict[str, int] = {}
        stage, step = "", 0
        for line in self.journal.read_text().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "stage":
                stage, step = rest, 0
            elif kind == "resumed":
                step = int(rest)
            elif kind == "step":
                if step < most.get(stage, 0):
                    yield most.pop(stage) - step
                step += 1
                most[stage] = max(step, most.get(stage, 0))


SEARCHED = (
    "train_file", "validation_file", "test_file", "model", "bottleneck_dim", "batch_size", "search_steps", "searcher",
)  # fmt: skip


def results(verb: str, folder: Path) -> Any:
    """What must be the same, whatever happened on the way."""
    search = json.loads((folder / "search.json").read_text())
    if verb == "search":
        return search["prompt_layers"], [round(score, 5) for score in search["scores"]]
    metrics = json.loads((folder / "metrics.json").read_text())
    return search["prompt_layers"], metrics["test"], (folder / "predictions.jsonl").read_text()


def kill_at(process: subprocess.Popen[str], journal: Path, events: int, delay: float) -> bool:
    """Kill a process some seconds after it has written so many events; returns False if it ended before."""
    goal = events + (journal.read_bytes().count(b"\n") if journal.exists() else 0)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= goal):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    killed = process.poll() is None
    process.kill()
    _, errors = process.communicate()
    assert killed or process.returncode == 0, errors
    return killed


@pytest.mark.parametrize("verb", ["fit", "search"])
def test_killed_runs_go_on(verb: str, options: dict[str, Any], record: Callable[..., None], tmp_path: Path) -> None:
    whole = Process(verb, options, tmp_path / "whole")
    whole.finish()
    expected, names = results(verb, whole.folder), {path.name for path in whole.folder.iterdir()}
    events = whole.journal.read_text().count("\n")
    draw, killed, again = random.Random(0), 0, 0
    for number in itertools.count():
        run = Process(verb, options, tmp_path / f"run{number}")
        for _ in range(KILLS_PER_RUN):
            if killed < share(KILLS):
                delay = draw.choice(DELAYS) * draw.random()
                killed += kill_at(run.start(), run.journal, draw.randrange(events), delay)
        run.finish()
        assert results(verb, run.folder) == expected
        assert {path.name for path in run.folder.iterdir()} == names
        again = max(again, *run.steps_done_again(), 0)
        if killed >= share(KILLS):
            break
    assert again <= INTERVAL
    record(f"kill -9: {verb}", kills=killed, runs=number + 1, steps_done_again=again, interval=INTERVAL)
