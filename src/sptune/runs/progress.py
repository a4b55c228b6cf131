"""Progress events of a run, the time that its stages take, and the processes that share it."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sptune import whole_files

logger = logging.getLogger(__name__)


def on_cpu() -> bool:
    """Whether this run computes on the CPU: there is nothing better, or `accelerate launch --cpu` says so."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def processes() -> PartialState:
    """The processes that share this run, and the device of this one."""
    return PartialState(cpu=on_cpu())


def leave_processes() -> None:
    """Shut down the process group of this run: without this, PyTorch sometimes aborts a process at its end."""
    processes().destroy_process_group()


def has_bfloat16_kernels() -> bool:
    """Whether PyTorch computes fast in bfloat16 here: on a GPU, or on a CPU that it has kernels of its own for."""
    return not on_cpu() or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


class Clock:
    """Seconds by stage. The stages of an interrupted run count on when it is continued."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._path: Path | None = None

    def keep(self, path: Path, resume: bool) -> None:
        """From now on, keep the seconds in a file.

        Args:
            path: the file.
            resume: add those that an interrupted run left there.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.seconds = {name: before.get(name, 0.0) + self.seconds.get(name, 0.0) for name in before | self.seconds}

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as the stage's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            if self._path is not None and self._path.parent.is_dir():  # not where the folder was taken away
                whole_files.write_json(self._path, self.seconds)
