"""Halving and exhaustive search train discrete networks, each with its own weights."""

import dataclasses
import math

import pytest
import torch
from transformers import TrainerCallback

from sptune.errors import InputError
from sptune.search import SearchConfig, search_prompt_layers
from sptune.search.searchers import SEARCHERS, halving
from sptune.search.supernet_trainer import planned_steps
from sptune.training.trainer import SPTTrainer


@pytest.mark.parametrize("searcher", ["halving", "exhaustive"])
def test_discrete_networks_leave_the_supernet_as_it_was(search, build_supernet, searcher):
    network = build_supernet()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    search(searcher, network=network)
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


@pytest.fixture
def search_with_layer_2(build_supernet, build_args, examples, collate):
    """``search_with_layer_2(searcher, change)``: the scores of the network with layer 2 go through `change`."""

    def run(searcher, change):
        network = build_supernet()
        before = {name: parameter.clone() for name, parameter in network.named_parameters()}

        def scores(model, batch):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return change(logits) if network.base_model.generator_layers == [2] else logits

        search = SearchConfig(searcher=searcher, num_prompt_layers=1)
        try:
            return search_prompt_layers(
                network, examples, build_args(), search, class_scores=scores, data_collator=collate
            )
        finally:
            assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())

    return run


@pytest.mark.parametrize("searcher", ["halving", "exhaustive"])
def test_one_network_that_diverges_loses_and_the_others_go_on(search_with_layer_2, searcher):
    result = search_with_layer_2(searcher, lambda logits: logits * math.nan)
    assert result.prompt_layers != [2]
    assert [score for score in result.scores if not math.isfinite(score)] == [result.scores[2]] == [-math.inf]


def test_an_interrupted_search_leaves_the_supernet_as_it_was(search_with_layer_2):
    def interrupt(logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_with_layer_2("exhaustive", interrupt)


def test_halving_drops_the_half_with_the_larger_losses(search):
    result, _ = search("halving", num_prompt_layers=1)
    first, last = (entry["losses"] for entry in result.history)
    kept = [layer for layer in range(4) if last[layer] is not None]
    assert kept == sorted(sorted(range(4), key=lambda layer: first[layer])[:2])
    assert result.prompt_layers == [min(kept, key=lambda layer: last[layer])]
    assert result.steps == 4 * 3 + 2 * 3


@pytest.mark.parametrize("rate", [5e-3, 0.5])
def test_a_layer_that_halving_has_dropped_stays_out(search, monkeypatch, rate):
    """Also where losses rise from rung to rung, and where single layers compete for want of time."""
    monkeypatch.setattr(halving, "MAX_SETS", 1)
    result, _ = search("halving", num_prompt_layers=1, args={"learning_rate": rate})
    *_, last = (entry["losses"] for entry in result.history)
    kept = [layer for layer in range(4) if last[layer] is not None]
    assert result.prompt_layers == [min(kept, key=lambda layer: last[layer])]
    assert len(search("halving", num_prompt_layers=3)[0].prompt_layers) == 3


@pytest.mark.parametrize("searcher", ["halving", "exhaustive"])
def test_discrete_networks_train_for_as_many_epochs_as_are_asked_for(search, searcher):
    result, _ = search(searcher, num_prompt_layers=1, args={"max_steps": -1, "num_train_epochs": 2})
    assert result.steps == {"halving": 4 * 3 + 2 * 3, "exhaustive": 4 * 6}[searcher], "3 batches in the weight split"


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_planned_steps_are_those_of_the_trainer(
    build_supernet, build_args, make_examples, collate, accumulation, drop_last
):
    args = build_args(
        max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=accumulation, dataloader_drop_last=drop_last
    )
    examples = make_examples(11)
    trainer = SPTTrainer(build_supernet(), args, train_dataset=examples, data_collator=collate)
    trainer.train()
    assert planned_steps(args, len(examples)) == trainer.state.global_step


def test_exhaustive_takes_the_set_with_the_lowest_loss(search):
    result, _ = search("exhaustive", num_prompt_layers=3)
    (entry,) = result.history
    assert result.steps == math.comb(4, 3) * 6
    assert result.scores == [-loss for loss in entry["losses"]]
    best = max(result.scores)
    assert [layer for layer, score in enumerate(result.scores) if score == best] == result.prompt_layers


@pytest.mark.parametrize(
    "args",
    [{"eval_on_start": True, "eval_strategy": "epoch"}, {"eval_delay": 100}, {"dataloader_drop_last": True}],
    ids=str,
)
def test_networks_are_compared_by_the_loss_after_training(search, args):
    """Whatever the user's arguments say about evaluation."""
    usual = {"per_device_train_batch_size": 12, "per_device_eval_batch_size": 16}
    expected, _ = search("exhaustive", num_prompt_layers=1, args=usual)
    result, _ = search("exhaustive", num_prompt_layers=1, args={**usual, **args})
    assert result.scores == pytest.approx(expected.scores, abs=1e-6)


def test_a_callback_may_end_the_training_of_a_network(build_supernet, build_args, examples, collate):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    search = SearchConfig(searcher="exhaustive", num_prompt_layers=1)
    result = search_prompt_layers(
        build_supernet(), examples, build_args(), search, data_collator=collate, callbacks=[Stop()]
    )
    assert result.steps == 4
    assert all(math.isfinite(score) for score in result.scores)


def test_exhaustive_refuses_what_would_take_forever(search, monkeypatch):
    monkeypatch.setitem(SEARCHERS, "exhaustive", dataclasses.replace(SEARCHERS["exhaustive"], max_sets=5))
    with pytest.raises(InputError, match="would train 6 networks for 2 of 4 layers"):
        search("exhaustive")
