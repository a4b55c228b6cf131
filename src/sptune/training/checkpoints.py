"""The checkpoint that a training resumes from."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from sptune.errors import InputError
from sptune.training.early_stopping import has_stopped

# Files that transformers and PEFT fall back to, and those that they look for first.
PICKLES = {"adapter_model.bin": "adapter_model.safetensors", "pytorch_model.bin": "model.safetensors"}


def last_checkpoint(output_dir: str | None, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint that `transformers.Trainer.train` would resume from; None if it would start again.

    Args:
        output_dir: where the last checkpoint is, if `resume_from_checkpoint` is True.
        resume_from_checkpoint: as in `transformers.Trainer.train`.
    """
    if resume_from_checkpoint is True:
        return get_last_checkpoint(output_dir or ".")
    return str(resume_from_checkpoint) if resume_from_checkpoint else None


def check_checkpoint(checkpoint: str | None) -> None:
    """Refuse a checkpoint whose weights are a pickle, which may come from a stranger.

    Raises:
        InputError: it holds no safetensors.
    """
    for pickled, name in PICKLES.items() if checkpoint else ():
        for file in Path(checkpoint or "").rglob(pickled):
            if not file.with_name(name).exists():
                raise InputError(
                    f"{file}: is a pickle, and weights are loaded from safetensors only; remove {checkpoint}, so that "
                    "the run continues from an earlier checkpoint or from its beginning."
                )


def trainer_state(checkpoint: str | None) -> TrainerState | None:
    """The state of the trainer that wrote a checkpoint; None if there is none."""
    file = Path(checkpoint, TRAINER_STATE_NAME) if checkpoint else None
    return TrainerState.load_from_json(str(file)) if file is not None and file.is_file() else None


def has_all_steps(trainer: Trainer, state: TrainerState) -> bool:
    """Whether a checkpoint with this state has all steps of the trainer's arguments, or was stopped early."""
    args = trainer.args
    if state.global_step == 0:
        return False
    if has_stopped(trainer, state):
        return True
    if args.max_steps > 0:
        return state.global_step >= args.max_steps
    if args.auto_find_batch_size and state.train_batch_size is not None:
        trainer._train_batch_size = state.train_batch_size
    steps_in_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    return state.global_step >= math.ceil(args.num_train_epochs * steps_in_epoch)


def load_finished(trainer: Trainer, checkpoint: str, state: TrainerState) -> TrainOutput:
    """End a training that has all its steps in a checkpoint with this state, as if the trainer had done them."""
    trainer.state = state
    trainer._load_from_checkpoint(checkpoint)
    trainer.callback_handler.on_train_begin(trainer.args, state, trainer.control)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
    return TrainOutput(state.global_step, 0.0, {})
