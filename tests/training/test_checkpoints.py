"""Which checkpoint a training resumes from, and which ones it keeps."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from sptune.errors import InputError
from sptune.training.checkpoints import KeepLastCheckpoint

SAVING = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "seed": 1}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}


def _remove_state(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").unlink()


def _cut_state(checkpoint: Path) -> None:
    os.truncate(checkpoint / "trainer_state.json", 20)


def _zero_weights(checkpoint: Path) -> None:
    weights = checkpoint / "adapter_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


@pytest.mark.parametrize("damage", [_remove_state, _cut_state, _zero_weights])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(build_trainer, bert, tmp_path, damage):
    whole = build_trainer(bert, None, **SAVING)
    whole.train()
    damage(tmp_path / "out" / "checkpoint-12")
    resumed = build_trainer(bert, None, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.losses.values) == 3, "two steps and an evaluation"
    torch.testing.assert_close(torch.tensor(resumed.losses.values), torch.tensor(whole.losses.values[-3:]))


def test_without_any_other_checkpoint_a_damaged_one_is_named(build_trainer, bert, tmp_path):
    trainer = build_trainer(bert, None, **SAVING)
    trainer.train()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        _remove_state(checkpoint)
    with pytest.raises(InputError, match=r"checkpoint-12: was not written to its end.*resume_from_checkpoint"):
        build_trainer(bert, None, **SAVING).train(resume_from_checkpoint=True)


class ClockSetBack(TrainerCallback):
    """Makes each checkpoint an hour older than the one before."""

    def on_save(self, args, state, control, **kwargs):
        then = 1e9 - 3600 * state.global_step
        os.utime(Path(args.output_dir, f"checkpoint-{state.global_step}"), (then, then))


def test_the_last_and_the_best_checkpoint_are_kept_whatever_the_clock_says(build_trainer, bert, tmp_path):
    # With this rate the first evaluation is the best.
    trainer = build_trainer(bert, None, **SAVING, **BEST, learning_rate=1e-12)
    trainer.add_callback(ClockSetBack())
    trainer.add_callback(KeepLastCheckpoint())
    trainer.train()
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-12"}


def test_a_finished_training_in_a_moved_folder_has_its_best_weights(build_trainer, bert, tmp_path):
    first = build_trainer(bert, None, **SAVING, **BEST)
    first.train()
    best = Path(first.state.best_model_checkpoint).name
    shutil.move(tmp_path / "out", tmp_path / "moved")
    again = build_trainer(bert, None, **SAVING, **BEST)
    again.args.output_dir = str(tmp_path / "moved")
    again.add_callback(KeepLastCheckpoint())
    again.train(resume_from_checkpoint=True)
    assert again.state.best_model_checkpoint == str(tmp_path / "moved" / best)
    expected = dict(first.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)
