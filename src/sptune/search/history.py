"""`SearchHistory`: the record of a search, step by step, which its checkpoints keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from sptune.errors import InputError
from sptune.training.checkpoints import last_checkpoint


class SearchHistory(TrainerCallback, ExportableState):
    """Keeps an entry for every step, and the state that a resumed search needs; checkpoints store both.

    `entries` is the history of `SearchResult`, `latest` holds the losses of the current step, `gate_batches` is the
    number of batches of the architecture split so far, and `seconds` the time spent.

    Args:
        gates: whether entries have the gates after the step.
    """

    def __init__(self, gates: bool) -> None:
        self.gates = gates
        self.read_gates: Callable[[], list[float] | None] = lambda: None  # the trainer sets its own
        self.entries: list[dict[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self.gate_batches = 0
        self._seconds_before = 0.0
        self._started: float | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> SearchHistory:
        """The history that a trainer keeps."""
        return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, cls))

    @property
    def seconds(self) -> float:
        """Time spent in training, including the time before it was resumed."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint stores."""
        kept = {"entries": self.entries, "gate_batches": self.gate_batches, "_seconds_before": self.seconds}
        return {"args": {"gates": self.gates}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the state of the checkpoint, or start again."""
        states: Any = state.stateful_callbacks
        kept = states[type(self).__name__] if state.global_step > 0 else SearchHistory(self.gates).state()
        for name, value in kept["attributes"].items():
            setattr(self, name, value)
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step."""
        gates = {"gates": self.read_gates()} if self.gates else {}
        self.entries.append({"step": state.global_step, **gates, **self.latest})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._seconds_before, self._started = self.seconds, None


def entry_logs(entry: dict[str, Any], layers: Sequence[int]) -> dict[str, float]:
    """An entry of a history as flat numbers, as trainers log them: "gate/layer_3", "weight_loss", ...

    Args:
        entry: the entry.
        layers: the candidate layers.
    """
    logs = {name: value for name, value in entry.items() if isinstance(value, float)}
    for name, title in (("gates", "gate"), ("losses", "loss")):
        for layer, value in zip(layers, entry.get(name) or (), strict=False):
            if value is not None:
                logs[f"{title}/layer_{layer}"] = value
    return logs


def check_search_checkpoint(output_dir: str | None, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse to resume a search from a checkpoint of another training.

    Args:
        output_dir: where the last checkpoint is, if `resume_from_checkpoint` is True.
        resume_from_checkpoint: as in `transformers.Trainer.train`.

    Raises:
        InputError: the checkpoint is not one of a search.
    """
    checkpoint = last_checkpoint(output_dir, resume_from_checkpoint)
    state_file = Path(checkpoint, TRAINER_STATE_NAME) if checkpoint else None
    if state_file is None or not state_file.is_file():
        return  # transformers says what is missing
    if SearchHistory.__name__ not in TrainerState.load_from_json(str(state_file)).stateful_callbacks:
        raise InputError(
            f"{checkpoint} holds no history of a search, so no search can be resumed from it; take a checkpoint "
            "of a search, or start again."
        )
