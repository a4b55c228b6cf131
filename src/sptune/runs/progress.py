"""`Monitor`: receives the progress events of a run."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class Monitor:
    """Receives progress events of a run and logs them; the command line draws progress bars instead."""

    def stage(self, title: str, steps: int | None = None) -> None:
        """A stage begins, of so many steps if that is known."""
        logger.info("%s", title)

    def step(self) -> None:
        """One step of the stage is done."""

    def resumed(self, done: int) -> None:
        """The stage goes on after steps that an interrupted run did."""
        logger.info("Continuing after step %d.", done)
        for _ in range(done):
            self.step()

    def note(self, text: str) -> None:
        """Something the user should read."""
        logger.warning("%s", text)


class StepCallback(TrainerCallback):
    """Passes a trainer's steps to a monitor; a resumed training begins with those it has done."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the steps of the checkpoint."""
        if state.global_step:
            self.monitor.resumed(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count a step."""
        self.monitor.step()
