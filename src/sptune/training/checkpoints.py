"""The checkpoint that a training resumes from, and those that it keeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from sptune import whole_files
from sptune.errors import InputError
from sptune.training.data_order import steps_of_epoch
from sptune.training.early_stopping import has_stopped

# Files that transformers and PEFT fall back to, and those that they look for first.
PICKLES = {"adapter_model.bin": "adapter_model.safetensors", "pytorch_model.bin": "model.safetensors"}


class KeepLastCheckpoint(TrainerCallback):
    """Keeps the last checkpoint and the best one; use it without `save_total_limit`.

    With that limit transformers takes the last checkpoint for an old one if the clock was set back, and removes it at
    the end of a training if it is not the best: what is interrupted afterwards trains again.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the best checkpoint of a resumed training whose folder has been moved."""
        best = Path(state.best_model_checkpoint or "")
        moved = Path(args.output_dir or ".", best.name)
        if state.best_model_checkpoint and not best.exists() and moved.exists():
            state.best_model_checkpoint = str(moved)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remove the others, once the last one is on the disk."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir or ".")
        last = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        whole_files.flush(folder / last)
        best = Path(state.best_model_checkpoint or last).name
        for checkpoint in _checkpoints(folder):
            if checkpoint.name not in (last, best):
                whole_files.remove(checkpoint)


def last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint in a folder that was written to its end; None if there is none."""
    return next((str(checkpoint) for checkpoint in reversed(_checkpoints(folder)) if _is_whole(checkpoint)), None)


def last_checkpoint(output_dir: str | None, resume_from_checkpoint: str | bool | None) -> str | None:
    """The checkpoint to resume from; None to start again.

    Args:
        output_dir: where the last checkpoint is, if `resume_from_checkpoint` is True.
        resume_from_checkpoint: as in `transformers.Trainer.train`.

    Raises:
        InputError: the last one is asked for, and none was written to its end.
    """
    if resume_from_checkpoint is True:
        folder = Path(output_dir or ".")
        last = last_whole_checkpoint(folder)
        if last is None and (damaged := _checkpoints(folder)):
            raise InputError(
                f"{damaged[-1]}: was not written to its end, and there is no other checkpoint; remove it, and train "
                "without resume_from_checkpoint."
            )
        return last
    return str(resume_from_checkpoint) if resume_from_checkpoint else None


def check_shared_resume(args: TrainingArguments) -> None:
    """Refuse to resume in several processes on CPUs where transformers cannot.

    Before 5.18 it reads the optimizer's state to the device "cpu:0", which PyTorch does not know.

    Raises:
        InputError: the installed version is older.
    """
    if args.world_size > 1 and args.device.type == "cpu" and Version(transformers.__version__) < Version("5.18"):
        raise InputError(
            "Resuming in several processes on CPUs needs transformers 5.18, and version "
            f"{transformers.__version__} is installed; upgrade it, or resume in one process."
        )


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
    steps = steps_of_epoch(len(trainer.get_train_dataloader()), args.gradient_accumulation_steps)
    return state.global_step >= math.ceil(args.num_train_epochs * steps)


def load_finished(trainer: Trainer, checkpoint: str, state: TrainerState) -> TrainOutput:
    """End a training that has all its steps in a checkpoint with this state, as if the trainer had done them."""
    trainer.state = state
    trainer._load_from_checkpoint(checkpoint)
    trainer.callback_handler.on_train_begin(trainer.args, state, trainer.control)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()
    trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
    return TrainOutput(state.global_step, 0.0, {})


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    steps = {path: path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in folder.glob("checkpoint-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: transformers writes the trainer's state last.

    A file that begins with zeros was lost when the power failed.
    """
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return all(_begins_with_content(path) for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError, TypeError):
        return False


def _begins_with_content(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) != bytes(8)
