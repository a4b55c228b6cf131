"""A search that was interrupted and resumed ends as if nothing had happened."""

import json

import pytest
import torch
from transformers import TrainerCallback

from sptune.errors import InputError
from sptune.search import SearchConfig, search_prompt_layers
from sptune.training.trainer import SPTTrainer

SEARCH = SearchConfig("spt_darts", num_prompt_layers=2, warmup_ratio=0.25, seed=2)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture
def search(build_supernet, build_args, examples, collate):
    """``search(stop_at=None, resume=None, **args)``: eight steps of a search, with dropout in backbone and head."""

    def run(stop_at=None, resume=None, search=SEARCH, **options):
        network = build_supernet(backbone={"hidden_dropout_prob": 0.1})
        args = build_args(**{"max_steps": 8, "save_strategy": "steps", "save_steps": 1, **options})
        callbacks = [StopAt(stop_at)] if stop_at else None
        return search_prompt_layers(
            network,
            examples,
            args,
            search,
            data_collator=collate,
            callbacks=callbacks,
            resume_from_checkpoint=resume,
        ), network

    return run


@pytest.mark.parametrize(
    ("stop_at", "options"),
    [(1, {}), (4, {"group_by_length": True}), (5, {}), (4, {"gradient_accumulation_steps": 2})],
    ids=str,
)
def test_resumed_equals_uninterrupted(search, tmp_path, stop_at, options):
    """Stops lie within the warm-up, within an epoch, and at the end of the architecture split's first epoch."""
    whole, whole_network = search(output_dir=str(tmp_path / "whole"), save_strategy="no", **options)
    folder = str(tmp_path / "broken")
    broken, _ = search(stop_at=stop_at, output_dir=folder, **options)
    assert broken.steps == stop_at
    resumed, network = search(resume=True, output_dir=folder, **options)

    assert resumed.steps == whole.steps == 8
    assert resumed.gates == pytest.approx(whole.gates, abs=1e-6)
    assert resumed.prompt_layers == whole.prompt_layers
    assert [entry["step"] for entry in resumed.history] == list(range(1, 9))
    for entry, expected in zip(resumed.history, whole.history, strict=True):
        assert entry["gates"] == pytest.approx(expected["gates"], abs=1e-6)
        assert entry["weight_loss"] == pytest.approx(expected["weight_loss"], abs=1e-5)
    trained = {name: p for name, p in whole_network.named_parameters() if p.requires_grad}
    for name, parameter in network.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter, trained[name], atol=1e-5, rtol=1e-4)
    assert resumed.seconds > 0


@pytest.mark.parametrize("searcher", ["fair", "gumbel", "progressive"])
def test_other_searchers_resume_too(search, tmp_path, searcher):
    how = SearchConfig(searcher=searcher, num_prompt_layers=1, **({} if searcher == "fair" else {"warmup_ratio": 0.25}))
    whole, _ = search(output_dir=str(tmp_path / "whole"), search=how)
    folder = str(tmp_path / "broken")
    search(stop_at=6, output_dir=folder, search=how)
    resumed, _ = search(resume=True, output_dir=folder, search=how)
    assert [entry["step"] for entry in resumed.history] == list(range(1, 9))
    assert resumed.scores == pytest.approx(whole.scores, abs=1e-5)


@pytest.mark.parametrize("searcher", ["fair", "darts"])
def test_a_search_that_was_trained_to_the_end_is_only_read(search, tmp_path, searcher):
    """As when the run is killed while the network is read."""
    how = SearchConfig(searcher=searcher, num_prompt_layers=1)
    whole, whole_network = search(output_dir=str(tmp_path), search=how)
    resumed, network = search(resume=True, output_dir=str(tmp_path), search=how)
    assert [entry["step"] for entry in resumed.history] == list(range(1, 9))
    assert resumed.steps == whole.steps
    assert resumed.scores == pytest.approx(whole.scores, abs=1e-6)
    trained = {name: p for name, p in whole_network.named_parameters() if p.requires_grad}
    for name, parameter in network.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter, trained[name])


@pytest.mark.parametrize("searcher", ["fair", "spt_darts"])
def test_a_search_that_was_trained_to_the_end_goes_on_for_longer(search, tmp_path, searcher):
    how = SearchConfig(searcher=searcher, num_prompt_layers=1, **({} if searcher == "fair" else {"warmup_ratio": 0.25}))
    search(output_dir=str(tmp_path), search=how)
    longer, _ = search(resume=True, output_dir=str(tmp_path), search=how, max_steps=11)
    assert longer.steps == 11
    assert [entry["step"] for entry in longer.history] == list(range(1, 12))


def test_a_checkpoint_is_whole_in_itself(search, tmp_path):
    """The history travels in the checkpoint's own state file, so that a copy of the folder is enough."""
    folder = tmp_path / "broken"
    search(stop_at=3, output_dir=str(folder))
    checkpoint = (folder / "checkpoint-3").rename(tmp_path / "elsewhere")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["SearchHistory"]["attributes"]
    assert [entry["step"] for entry in kept["entries"]] == [1, 2, 3]
    resumed, _ = search(resume=str(checkpoint), output_dir=str(tmp_path / "new"))
    assert len(resumed.history) == 8


@pytest.mark.parametrize("searcher", ["spt_darts", "progressive"])
def test_the_callbacks_may_be_restored_by_transformers_too(search, tmp_path, searcher):
    how, folder = SearchConfig(searcher, num_prompt_layers=2, warmup_ratio=0.25, seed=2), str(tmp_path / "broken")
    search(stop_at=4, output_dir=folder, search=how)
    resumed, _ = search(resume=True, output_dir=folder, search=how, restore_callback_states_from_checkpoint=True)
    assert [entry["step"] for entry in resumed.history] == list(range(1, 9))
    assert all(len(entry["gates"]) == 4 for entry in resumed.history)
    assert resumed.history[-1]["gates"] == pytest.approx(resumed.gates)


def test_a_checkpoint_of_another_training_is_refused(search, build_supernet, build_args, examples, collate, tmp_path):
    args = build_args(max_steps=2, save_strategy="steps", save_steps=2, output_dir=str(tmp_path))
    SPTTrainer(build_supernet(), args, train_dataset=examples, data_collator=collate).train()
    with pytest.raises(InputError, match="checkpoint-2 holds no history of a search"):
        search(resume=True, output_dir=str(tmp_path))
