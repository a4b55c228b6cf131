"""Selection criteria rank layers by what they say they do, and evenly spaced layers must be beaten beyond noise."""

import copy
import itertools
import math

import pytest
import torch

from sptune import discretize
from sptune.errors import InputError
from sptune.search import SearchConfig, SPTSearchTrainer, selection_criteria
from sptune.search.selection_criteria import BLOCKS, MAX_ROUNDS, by_perturbation, by_sets, greedily


def test_perturbation_scores_are_rises_of_the_held_out_loss(build_trainer, plain_loss, randomize):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    network, tuner = trainer.model.eval(), trainer.tuner
    randomize(network)
    tuner.set_gate_values([0.2, 0.9, 0.4, 0.7])
    held_out = [trainer.architecture_dataset[index] for index in range(len(trainer.architecture_dataset))]
    before = plain_loss(network, held_out)
    expected = []
    for closed in range(4):
        gates = [0.2, 0.9, 0.4, 0.7]
        gates[closed] = 0.0
        tuner.set_gate_values(gates)
        expected.append(plain_loss(network, held_out) - before)
    tuner.set_gate_values([0.2, 0.9, 0.4, 0.7])
    assert by_perturbation(trainer) == (pytest.approx(expected, abs=1e-5), None)


def test_sets_and_greedy_choose_by_the_loss_of_discrete_networks(build_trainer, plain_loss, randomize):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    network = trainer.model.eval()
    randomize(network)
    held_out = [trainer.architecture_dataset[index] for index in range(len(trainer.architecture_dataset))]

    def loss(layers):
        final = discretize(copy.deepcopy(network), list(layers), warm_start=True).eval()
        return plain_loss(final, held_out)

    alone = {layer: loss([layer]) for layer in range(4)}
    first = min(alone, key=alone.get)
    pairs = {pair: loss(pair) for pair in itertools.combinations(range(4), 2)}
    grown = min((pair for pair in pairs if first in pair), key=pairs.get)
    # Copies of each example: every part of the data has the same texts, so the best set wins, and there is no noise.
    trainer.architecture_dataset = [one for one in held_out for _ in range(MAX_ROUNDS * BLOCKS)]
    scores, chosen = greedily(trainer)
    assert scores == pytest.approx([-alone[layer] for layer in range(4)], abs=1e-5)
    assert chosen == list(grown)
    assert by_sets(trainer).prompt_layers == list(min(pairs, key=pairs.get))


def test_layers_must_beat_evenly_spaced_ones_beyond_noise(build_trainer, plain_loss, randomize, make_examples):
    """The race is run on one half of the held-out data, and its winner confirmed on the other."""
    taken = set()
    for seed in range(8):
        trainer = build_trainer(SPTSearchTrainer, "darts", num_prompt_layers=1)
        randomize(trainer.model.eval(), seed)
        trainer.architecture_dataset = make_examples(120, seed)
        nets = [discretize(copy.deepcopy(trainer.model), [layer], warm_start=True).eval() for layer in range(4)]
        race, confirmation = trainer.architecture_dataset[::2], trainer.architecture_dataset[1::2]
        raced = [plain_loss(net, race) for net in nets]
        best = raced.index(min(raced))
        blocks = [confirmation[place::BLOCKS] for place in range(BLOCKS)]
        gains = torch.tensor([plain_loss(nets[2], one) - plain_loss(nets[best], one)
                              for one in blocks])  # fmt: skip
        sure = bool(gains.mean() > 2.2622 * gains.std() / math.sqrt(BLOCKS))
        assert by_sets(trainer).prompt_layers == [best if sure else 2]
        assert any(("beyond noise" in remark) is (best != 2) for remark in trainer.remarks) is not sure
        taken.add(sure and best != 2)
    assert taken == {True, False}


def test_too_few_held_out_examples_tell_nothing_and_the_result_says_so(search, caplog):
    caplog.set_level("INFO", logger="sptune")
    result, _ = search("fair", num_prompt_layers=1)
    assert result.prompt_layers == [2]
    (remark,) = result.remarks
    assert "12 held-out examples are too few to tell layers apart" in remark or "lowest" in remark
    assert caplog.messages.count(remark) == 1


@pytest.mark.parametrize(("criterion", "looks"), [(by_perturbation, 1), (by_sets, 1), (greedily, 1.5)])
def test_a_criterion_evaluates_a_part_of_a_large_architecture_split(
    build_trainer, monkeypatch, criterion, looks, randomize, make_examples
):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    randomize(trainer.model.eval(), 1)
    trainer.architecture_dataset = make_examples(480)
    seen = []
    load = trainer.get_eval_dataloader

    def observe(dataset):
        seen.append(len(dataset))
        return load(dataset)

    monkeypatch.setattr(trainer, "get_eval_dataloader", observe)
    monkeypatch.setattr(selection_criteria, "MAX_EXAMPLES", 120)
    criterion(trainer)
    assert 60 <= sum(seen) <= looks * 120


def test_a_criterion_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="selection='gates' does not fit searcher='fair'; choose one of sets, "):
        SearchConfig(searcher="fair", selection="gates")
    with pytest.raises(InputError, match="selection='greedy' does not fit searcher='halving'; leave it out"):
        SearchConfig(searcher="halving", selection="greedy")
    with pytest.raises(InputError, match=r"threshold=0.5 applies to gates.*give num_prompt_layers"):
        SearchConfig(searcher="fair", threshold=0.5)
