"""`RunTracker`: a run in the trackers that transformers' Trainer knows, such as TensorBoard, MLflow and W&B.

Trainer starts a tracker's run for each training. Here all stages of a run go to one, through the same callbacks.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from sptune.errors import InputError
from sptune.runs.output_folder import TENSORBOARD_FOLDER
from sptune.search import SearchResult
from sptune.search.history import entry_logs

# Packages that are not called as transformers calls the tracker.
PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
# The stage whose logs keep the names that Trainer gives them.
FINAL_TRAINING = "train"


class RunTracker:
    """Sends the logs of a run's stages to trackers, each under the name of its stage.

    Args:
        names: the trackers, as in `TrainingArguments(report_to=...)`.
        folder: the output folder of the run.
        active: whether this process is the one that reports.

    Raises:
        InputError: a tracker that Trainer does not know, or whose package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, active: bool = True) -> None:
        callbacks = {name: _callback(name) for name in names}
        self._callbacks = callbacks if active else {}
        self._folder = folder
        self._arguments: TrainingArguments | None = None
        self._model: nn.Module | None = None

    @contextlib.contextmanager
    def running(self, arguments: TrainingArguments, model: nn.Module) -> Iterator[None]:
        """For the stages inside, have a run in each tracker.

        Args:
            arguments: of the final training, which the trackers record.
            model: the backbone, whose configuration they record.
        """
        self._arguments, self._model = copy.copy(arguments), model
        self._arguments.run_name = self._folder.resolve().name
        if "tensorboard" in self._callbacks:
            self._callbacks["tensorboard"].tb_writer = _tensorboard_writer(self._folder / TENSORBOARD_FOLDER)
        # The callback of W&B leaves its run open for other trainings; a run that was open before is the user's.
        wandb: Any = importlib.import_module("wandb") if "wandb" in self._callbacks else None
        closes_wandb, failed = wandb is not None and wandb.run is None, True
        try:
            for event in ("on_init_end", "on_train_begin"):
                self._send(event, TrainerState())
            yield
            failed = False
        finally:
            # That of MLflow ends whatever run is active when it is deleted, which must not be another one.
            self._callbacks.clear()
            if closes_wandb:
                wandb.finish(exit_code=int(failed))

    def stage(self, name: str) -> list[TrainerCallback]:
        """The callbacks of a stage's trainer, which send its logs to the trackers."""
        return [StageCallback(self, name)] if self._callbacks else []

    def log(self, stage: str, values: dict[str, Any], step: int) -> None:
        """Send values of a stage; values that are no numbers are left out.

        Args:
            stage: its name.
            values: by name; those that begin with "eval_" or "test_" are of validation and test data.
            step: the number of optimizer steps so far.
        """
        self.send_logs(stage, values, TrainerState(global_step=step))

    def log_search(self, result: SearchResult, *, replay: bool) -> None:
        """Send the scores of a search and, to `replay` it, its history."""
        for entry in result.history if replay else ():
            self.log("search", entry_logs(entry, result.candidate_layers), entry["step"])
        scores = {
            f"score/layer_{one}": score for one, score in zip(result.candidate_layers, result.scores, strict=True)
        }
        self.log("search", scores, result.steps)

    def send_logs(self, stage: str, values: dict[str, Any], state: TrainerState) -> None:
        """Send the logs of a trainer with this state."""
        numbers = {
            _staged(stage, name): value
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        self._send("on_log", state, logs=numbers)

    def save(self, arguments: TrainingArguments, state: TrainerState) -> None:
        """Tell trackers that keep checkpoints that one was written."""
        for callback in self._callbacks.values():
            callback.on_save(arguments, state, TrainerControl(), model=self._model)

    def end(self, model: nn.Module, state: TrainerState) -> None:
        """Tell the trackers that all is done.

        Args:
            model: the final network.
            state: of its trainer.
        """
        self._model = model
        self._send("on_train_end", state)

    def _send(self, event: str, state: TrainerState, **values: Any) -> None:
        for callback in self._callbacks.values():
            getattr(callback, event)(self._arguments, state, TrainerControl(), model=self._model, **values)


class StageCallback(TrainerCallback):
    """Passes the logs of one stage on."""

    def __init__(self, tracker: RunTracker, stage: str) -> None:
        self.tracker, self.stage = tracker, stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass them on."""
        self.tracker.send_logs(self.stage, logs or {}, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Pass on that a checkpoint of the final training was written."""
        if self.stage == FINAL_TRAINING:
            self.tracker.save(args, state)


def _callback(name: str) -> Any:
    if name not in INTEGRATION_TO_CALLBACK:
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise InputError(f"report_to={name!r} is not a tracker that transformers knows; choose from {known}.")
    try:
        return INTEGRATION_TO_CALLBACK[name]()
    except (ImportError, RuntimeError) as error:
        package = PACKAGES.get(name, name)
        raise InputError(
            f"report_to={name!r} cannot be used ({error}). Install it with: pip install {package}"
        ) from None


def _staged(stage: str, name: str) -> str:
    """The name of a value with its stage, behind the prefix by which trackers tell validation and test data."""
    if stage == FINAL_TRAINING:
        return name
    split = next((split for split in ("eval", "test") if name.startswith(f"{split}_")), None)
    return f"{stage}/{name}" if split is None else f"{split}_{stage}/{name.removeprefix(f'{split}_')}"


def _tensorboard_writer(folder: Path) -> Any:
    try:
        writers = importlib.import_module("torch.utils.tensorboard")
    except ImportError:
        writers = importlib.import_module("tensorboardX")
    return writers.SummaryWriter(log_dir=os.environ.get("TENSORBOARD_LOGGING_DIR", str(folder)))
