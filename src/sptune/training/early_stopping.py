"""`EarlyStopping` ends a training that no longer improves, and counts on when the training is resumed."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState, TrainingArguments


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' `EarlyStoppingCallback`, with the number of evaluations without improvement read from checkpoints.

    Transformers' own begins at zero after each resumption, so that a resumed training may end later than one that was
    never interrupted.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the count of the checkpoint, or start again."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = self._kept(state)

    def has_stopped(self, state: TrainerState) -> bool:
        """Whether a training with this state has been stopped by this callback."""
        return self._kept(state) >= self.early_stopping_patience

    def _kept(self, state: TrainerState) -> int:
        states: Any = state.stateful_callbacks or {}
        kept = states.get(type(self).__name__) if state.global_step > 0 else None
        return kept["attributes"]["early_stopping_patience_counter"] if kept else 0


def has_stopped(trainer: Trainer, state: TrainerState) -> bool:
    """Whether an `EarlyStopping` of a trainer has stopped a training with this state."""
    callbacks = trainer.callback_handler.callbacks
    return any(isinstance(one, EarlyStopping) and one.has_stopped(state) for one in callbacks)
