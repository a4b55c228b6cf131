"""What the activation cache keeps on disk, and what happens where there is no room."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    TrainerCallback,
)

from cached_training import BlocksRun, build_examples
from sptune.training.caching.activation_cache import ABOUT_FILE, CHECKSUMS_FILE, STATES_FILE, ActivationCache
from sptune.training.caching.cache_fingerprint import fingerprint
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.caching.token_table import TokenTable

FILE_LIMIT = 4_000


def test_an_interrupted_training_resumes_with_its_file(build_trainer, bert, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    settings, saving = ActivationCacheSettings(memory=0), {"save_strategy": "steps", "save_steps": 2, "seed": 1}
    whole = build_trainer(bert, None, **saving)
    whole.train()
    broken = build_trainer(bert, settings, **saving)
    broken.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    (kept,) = (tmp_path / "out").glob("prefix-cache-*")
    assert (kept / ABOUT_FILE).is_file()
    resumed = build_trainer(bert, settings, **saving)
    runs = BlocksRun(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert sum(runs.by_epoch) <= 2, "only the check of the first batch runs the lower layers"
    assert not kept.exists(), "a finished training leaves no cache behind"
    torch.testing.assert_close(
        torch.tensor(resumed.losses.values), torch.tensor(whole.losses.values[-len(resumed.losses.values) :]),
        rtol=1e-5, atol=0,
    )  # fmt: skip


def test_a_kept_file_serves_the_next_training(build_trainer, bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings, values = ActivationCacheSettings(memory=0, folder="~/shared", keep=True), []
    for _ in range(2):
        trainer = build_trainer(bert, settings)
        runs = BlocksRun(trainer.model)
        trainer.add_callback(runs)
        trainer.train()
        values.append(trainer.losses.values)
    assert sum(runs.by_epoch) <= 2, "only the check of the first batch runs the lower layers"
    assert any((tmp_path / "shared").iterdir())
    torch.testing.assert_close(torch.tensor(values[0]), torch.tensor(values[1]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("change", ["weights", "tokens", "layer"])
def test_a_stale_file_is_not_used(build_network, bert, tmp_path, change):
    def key(network, examples):
        backbone = network.base_model.backbone
        return fingerprint(
            backbone.base_model, network.base_model.generator_layers[0], TokenTable.of([examples]), backbone.layers
        )

    examples = build_examples(4)
    before = key(build_network(bert, prompt_layers=[2]), examples)
    assert key(build_network(bert, prompt_layers=[2], generator="static"), examples) == before
    network = build_network(bert, prompt_layers=[1 if change == "layer" else 2])
    if change == "weights":
        with torch.no_grad():
            next(network.base_model.backbone.layers[0].parameters()).view(-1)[0] += 1e-3
    if change == "tokens":
        examples[3]["input_ids"][0] += 1
    assert key(network, examples) != before


def test_a_file_without_its_description_is_made_anew(tmp_path):
    table = TokenTable.of([build_examples(3)])
    first = ActivationCache(2, table, 4, torch.float32, tmp_path, "key")
    first.write(torch.tensor([1]), first.table.starts[1] + torch.arange(4), torch.ones(4, 4))
    first.close(remove=False)
    again = ActivationCache(2, table, 4, torch.float32, tmp_path, "key")
    assert [again.holds(row) for row in torch.arange(3)] == [False, True, False]
    assert again.states[again.table.starts[1]].tolist() == [1.0] * 4
    again.close(remove=False)
    (again.folder / ABOUT_FILE).write_text(json.dumps({"key": "other"}))
    assert not ActivationCache(2, table, 4, torch.float32, tmp_path, "key").holds(torch.tensor([1]))


def _zero_states(folder: Path) -> None:
    """As a file system may leave a file whose blocks were not written when the power failed."""
    states = folder / STATES_FILE
    states.write_bytes(bytes(states.stat().st_size))


def _flip_one_bit(folder: Path) -> None:
    states = folder / STATES_FILE
    content = bytearray(states.read_bytes())
    content[4 * 4 * 4 + 2] ^= 1  # of the second example
    states.write_bytes(content)


def _cut_states(folder: Path) -> None:
    os.truncate(folder / STATES_FILE, 8)


def _cut_checksums(folder: Path) -> None:
    os.truncate(folder / CHECKSUMS_FILE, 8)


@pytest.mark.parametrize("damage", [_zero_states, _flip_one_bit, _cut_states, _cut_checksums])
def test_damaged_states_are_computed_again(tmp_path, damage):
    table = TokenTable.of([build_examples(3)])
    cache = ActivationCache(2, table, 4, torch.float32, tmp_path, "key")
    start, end = int(table.starts[1]), int(table.starts[2])
    cache.write(torch.tensor([1]), torch.arange(start, end), torch.ones(end - start, 4))
    cache.close(remove=False)
    damage(cache.folder)
    assert not ActivationCache(2, table, 4, torch.float32, tmp_path, "key").holds(torch.tensor([1]))


class FullDisk(TrainerCallback):
    """Lets no file grow once training has begun."""

    def on_train_begin(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_leaves_training_as_it_was(build_trainer, bert, caplog, when):
    expected = build_trainer(bert, None)
    expected.train()
    trainer = build_trainer(bert, ActivationCacheSettings(memory=0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if when == "before":
            FullDisk().on_train_begin(None, None, None)
        else:
            trainer.add_callback(FullDisk())
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "training goes on without" in caplog.text
    torch.testing.assert_close(
        torch.tensor(trainer.losses.values), torch.tensor(expected.losses.values), rtol=1e-5, atol=0
    )


def test_states_beyond_a_number_format_are_not_kept(build_trainer, bert, caplog):
    def grow(trainer):
        with torch.no_grad():
            trainer.model.base_model.backbone.layers[1].base_layer.output.LayerNorm.weight.fill_(1e6)

    values = []
    for cache in (None, ActivationCacheSettings(dtype="float16")):
        trainer = build_trainer(bert, cache)
        grow(trainer)
        trainer.train()
        values.append(trainer.losses.values)
    assert values[0] == values[1]
    assert "too large" in caplog.text


def test_what_another_layer_left_behind_is_cleared_away(build_trainer, bert, tmp_path):
    stale = tmp_path / "out" / "prefix-cache-0123456789abcdef"
    stale.mkdir(parents=True)
    build_trainer(bert, ActivationCacheSettings(memory=0)).train()
    assert not stale.exists()


def test_two_processes_share_a_file_and_agree_where_there_is_no_room(tmp_path):
    script, losses = Path(__file__).with_name("train_in_processes.py"), {}
    for cache in ("none", "file", "full disk"):
        output = tmp_path / f"{cache}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        run = subprocess.run(
            [*launch, str(script), str(output), cache, str(tmp_path / "shared")],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        losses[cache] = json.loads(output.read_text())
    assert losses["file"] == pytest.approx(losses["none"], rel=1e-4)
    assert losses["full disk"] == pytest.approx(losses["none"], rel=1e-4)
