"""The checkpoint that a training resumes from."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint


def last_checkpoint(output_dir: str | None, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint that `transformers.Trainer.train` would resume from; None if it would begin anew.

    Args:
        output_dir: where the last checkpoint is, if `resume_from_checkpoint` is True.
        resume_from_checkpoint: as in `transformers.Trainer.train`.
    """
    if resume_from_checkpoint is True:
        return get_last_checkpoint(output_dir or ".")
    return str(resume_from_checkpoint) if resume_from_checkpoint else None


def trainer_state(checkpoint: str | None) -> TrainerState | None:
    """The state of the trainer that wrote a checkpoint; None if there is none."""
    file = Path(checkpoint, TRAINER_STATE_NAME) if checkpoint else None
    return TrainerState.load_from_json(str(file)) if file is not None and file.is_file() else None
