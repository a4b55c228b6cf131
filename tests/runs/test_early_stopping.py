"""Early stopping of a run: where it ends, what is kept, and that resuming changes nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from sptune.errors import InputError
from sptune.runs.progress import Monitor
from sptune.runs.run import fit, search, train

# With this learning rate no evaluation is better than the first one.
STANDSTILL = {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "linear_probe": False, "prompt_layers": [1]}


class Notes(Monitor):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


class Killed(Exception):  # noqa: N818
    pass


class Killer(Monitor):
    """Ends the run at a stage, or at a step of one."""

    def __init__(self, title: str, step: int = 0) -> None:
        self.title, self.steps, self.current = title, step, ""

    def stage(self, title: str, steps: int | None = None) -> None:
        self.current = title
        if title.startswith(self.title) and not self.steps:
            raise Killed

    def step(self) -> None:
        if self.current.startswith(self.title):
            self.steps -= 1
            if not self.steps:
                raise Killed


def test_training_ends_without_improvement_and_keeps_its_best_weights(options: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    run = train(
        **options,
        **STANDSTILL,
        eval_steps=2,
        early_stopping=2,
        output_dir=tmp_path,
        keep_checkpoints=True,
        monitor=notes,
    )
    told = run.metrics["training"]
    assert (told["steps"], told["best_step"], told["stopped_early"]) == (6, 2, True)
    assert run.metrics["validation"]["score"] == told["best_validation_score"]
    assert any(note.startswith("Training ended after step 6 of 10: 2 evaluations") for note in notes.told)
    assert "trained for 6 steps, where training ended early," in (tmp_path / "report.html").read_text()


def test_training_that_improves_goes_on(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"learning_rate": 0.02, "prompt_layers": [1], "linear_probe": False, "eval_steps": 3}
    whole = train(**options, output_dir=tmp_path / "whole")
    patient = train(**options, output_dir=tmp_path / "patient", early_stopping=2)
    assert patient.metrics["training"] == {**whole.metrics["training"], "stopped_early": False}
    assert patient.metrics["test"] == whole.metrics["test"]


@pytest.mark.parametrize("killer", [Killer("Training prompts", 5), Killer("Evaluating")], ids=["before", "after"])
def test_a_resumed_training_ends_where_it_would_have(killer: Killer, options: dict[str, Any], tmp_path: Path) -> None:
    options |= {**STANDSTILL, "eval_steps": 2, "early_stopping": 2}
    with pytest.raises(Killed):
        train(**options, output_dir=tmp_path, monitor=killer)
    told = train(output_dir=tmp_path, resume=True).metrics["training"]
    assert (told["steps"], told["best_step"], told["stopped_early"]) == (6, 2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"early_stopping": 4}, "early_stopping=4 cannot end a training of 10 steps early, which evaluates 5 times"),
        ({"early_stopping": 1, "eval_steps": 5}, "which evaluates 2 times; lower early_stopping, or evaluate more"),
        ({"early_stopping": 0}, "early_stopping=0 is not allowed"),
        ({"eval_steps": 0}, "eval_steps=0 is not allowed"),
    ],
)
def test_patience_without_effect_is_refused(
    change: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        fit(**options, **change, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_search_alone_has_nothing_to_stop(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search trains no final network, so early_stopping=2 has no effect"):
        search(**options, early_stopping=2, output_dir=tmp_path / "run")
