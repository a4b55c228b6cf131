"""`SearchHistory`: what a search recorded step by step, kept in its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from sptune.errors import InputError
from sptune.training.checkpoints import last_checkpoint


class SearchHistory(TrainerCallback, ExportableState):
    """Keeps an entry for every step, and what else a resumed search needs; checkpoints hold it as a callback's state.

    `entries` is the history of `SearchResult`, `latest` what the trainer says of the step under way, `gate_batches` the
    number of gate batches drawn so far, and `seconds` the time spent.

    Args:
        gates: whether entries tell the gates after the step.
    """

    def __init__(self, gates: bool) -> None:
        self.gates = gates
        self.read_gates: Callable[[], list[float] | None] = lambda: None  # the trainer's
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
        """Time spent in training, that before a resumption included."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"entries": self.entries, "gate_batches": self.gate_batches, "_seconds_before": self.seconds}
        return {"args": {"gates": self.gates}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint holds, or begin anew."""
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


def check_search_checkpoint(output_dir: str | None, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse to resume a search from a checkpoint that no search wrote.

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
            f"{checkpoint} holds no history of a search, so a search cannot go on from it; resume from a checkpoint "
            "that a search wrote, or begin anew."
        )
