"""What every searcher keeps to, and what is particular to each."""

import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional

from sptune import discretize
from sptune.errors import InputError, SptuneError
from sptune.search import SearchConfig, search_prompt_layers
from sptune.search import selection_criteria as reading
from sptune.search.gate_trainer import SPTSearchTrainer
from sptune.search.search_config import FEWEST_EXAMPLES
from sptune.search.searchers import NAMES, exhaustive, halving, ways_to_read
from sptune.search.searchers.fair import FairTrainer
from sptune.search.searchers.gumbel import binary_concrete
from sptune.search.searchers.l0 import PENALTY, L0Trainer
from sptune.search.selection_criteria import BLOCKS, ROUNDS, greedy, perturbation, sets

WAYS = [(name, way) for name in NAMES for way in ways_to_read(name) or (None,)]


@pytest.fixture
def search(build_search_network, build_args, examples, collate):
    """``search(searcher, seed=0, steps=6, **fields)``: the result and the network."""

    def run(searcher, seed=0, steps=6, network=None, args=None, tell=None, **fields):
        network = network or build_search_network()
        more = {} if tell is None else {"tell": tell}
        config = SearchConfig(searcher=searcher, seed=seed, **{"num_prompt_layers": 2, **fields})
        args = build_args(**{"max_steps": steps, **(args or {})})
        return search_prompt_layers(network, examples, args, config, data_collator=collate, **more), network

    return run


@pytest.fixture
def build_trainer(build_search_network, build_args, examples, collate):
    def build(trainer_class, searcher, network=None, args=None, **fields):
        config = SearchConfig(searcher=searcher, **{"num_prompt_layers": 2, **fields})
        network = network or build_search_network()
        return trainer_class(
            network, build_args(**(args or {})), train_dataset=examples, search=config, data_collator=collate
        )

    return build


@pytest.mark.parametrize(("searcher", "way"), WAYS)
def test_every_searcher_finds_as_many_layers_as_are_wanted(search, searcher, way):
    result, network = search(searcher, selection=way)
    assert len(result.prompt_layers) == 2
    assert set(result.prompt_layers) <= {0, 1, 2, 3}
    assert len(result.scores) == 4
    assert result.search.reading == way
    assert (result.gates is None) == (way is None or searcher in ("fair", "auto"))
    assert discretize(network, result.prompt_layers).base_model.candidate_layers == result.prompt_layers


@pytest.mark.parametrize("searcher", NAMES)
def test_the_same_seed_finds_the_same(search, searcher):
    assert search(searcher, seed=4)[0].scores == search(searcher, seed=4)[0].scores


@pytest.mark.parametrize(("wanted", "layers"), [(1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])])
def test_spaced_layers_are_those_at_even_distances(search, wanted, layers):
    result, _ = search("spaced", num_prompt_layers=wanted)
    assert result.prompt_layers == layers
    assert (result.steps, result.history) == (0, [])


def test_by_default_layers_are_searched_for_where_there_are_examples_enough(
    build_search_network, build_args, make_examples, collate
):
    def search(size, **fields):
        told = []
        network, args, config = build_search_network(), build_args(max_steps=2), SearchConfig(**fields)
        examples = make_examples(size)
        result = search_prompt_layers(network, examples, args, config, data_collator=collate, tell=told.append)
        return result, told

    few, told = search(FEWEST_EXAMPLES - 1)
    assert (few.prompt_layers, few.steps) == ([1, 2], 0)
    assert told == few.remarks
    assert "1999 training examples are too few" in told[0]
    enough, told = search(FEWEST_EXAMPLES)
    assert enough.steps == 2
    assert not any("too few" in remark for remark in told)
    assert enough.scores == search(FEWEST_EXAMPLES, searcher="fair")[0].scores


def test_random_draws_follow_the_seed(search):
    found = {tuple(search("random", seed=seed)[0].prompt_layers) for seed in range(20)}
    assert len(found) > 3


# -- how a network is read ----------------------------------------------------------------------------------------


def plain_loss(network, examples, collate):
    with torch.no_grad():
        losses = [functional.cross_entropy(network(**(batch := collate([one]))).logits, batch["labels"])
                  for one in examples]  # fmt: skip
    return torch.stack(losses).mean().item()


LOADERS = [
    {},
    {"dataloader_drop_last": True, "per_device_eval_batch_size": 8},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
]


@pytest.mark.parametrize("args", LOADERS, ids=str)
def test_held_out_losses_are_means_over_the_gate_half(build_trainer, collate, randomise, args):
    trainer = build_trainer(SPTSearchTrainer, "darts", args=args)
    network = trainer.model.eval()
    randomise(network)
    held_out = [trainer.gate_dataset[index] for index in range(len(trainer.gate_dataset))]
    expected = []
    for layers in ([1], [0, 3]):
        final = discretize(copy.deepcopy(network), layers, warm_start=True).eval()
        expected.append(plain_loss(final, held_out, collate))
    settings = [lambda layers=layers: trainer.tuner.prompting_at(layers) for layers in ([1], [0, 3])]
    assert trainer.held_out_losses(settings) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    parts = [trainer.held_out_losses(settings, part, 3) for part in range(3)]
    assert [sum(losses) / 3 for losses in zip(*parts, strict=True)] == pytest.approx(expected, abs=1e-5)
    assert parts[0] != pytest.approx(parts[1], abs=1e-4)


@pytest.mark.parametrize("searcher", ["darts", "fair", "exhaustive"])
def test_a_search_that_diverges_says_so(search, searcher):
    with pytest.raises(SptuneError, match=r"diverged.*lower learning_rate"):
        search(searcher, args={"learning_rate": 1e30, "max_grad_norm": 0.0})


def test_layers_below_the_prompts_run_once_for_all_networks_of_a_batch(build_trainer):
    trainer = build_trainer(FairTrainer, "fair")
    calls = [0] * 4
    for index, block in enumerate(trainer.tuner.backbone.layers):

        def count(module, args, output, index=index):
            calls[index] += 1

        block.base_layer.register_forward_hook(count)
    trainer.held_out_losses([lambda layer=layer: trainer.tuner.prompting_at([layer]) for layer in range(4)])
    batches = len(trainer.get_eval_dataloader(trainer.gate_dataset))
    assert [count // batches for count in calls] == [2, 3, 4, 4], "once without prompts, and once for each below it"


def test_perturbation_scores_are_what_the_loss_rises_by(build_trainer, collate, randomise):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    network, tuner = trainer.model.eval(), trainer.tuner
    randomise(network)
    tuner.set_gate_values([0.2, 0.9, 0.4, 0.7])
    held_out = [trainer.gate_dataset[index] for index in range(len(trainer.gate_dataset))]
    before = plain_loss(network, held_out, collate)
    expected = []
    for closed in range(4):
        gates = [0.2, 0.9, 0.4, 0.7]
        gates[closed] = 0.0
        tuner.set_gate_values(gates)
        expected.append(plain_loss(network, held_out, collate) - before)
    tuner.set_gate_values([0.2, 0.9, 0.4, 0.7])
    assert perturbation(trainer) == (pytest.approx(expected, abs=1e-5), None)


def test_sets_and_greedy_choose_by_the_loss_of_discrete_networks(build_trainer, collate, randomise):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    network = trainer.model.eval()
    randomise(network)
    held_out = [trainer.gate_dataset[index] for index in range(len(trainer.gate_dataset))]

    def loss(layers):
        final = discretize(copy.deepcopy(network), list(layers), warm_start=True).eval()
        return plain_loss(final, held_out, collate)

    alone = {layer: loss([layer]) for layer in range(4)}
    first = min(alone, key=alone.get)
    pairs = {pair: loss(pair) for pair in itertools.combinations(range(4), 2)}
    grown = min((pair for pair in pairs if first in pair), key=pairs.get)
    # Copies of each example: every part of the data has the same texts, so the best set wins, and there is no noise.
    trainer.gate_dataset = [one for one in held_out for _ in range(ROUNDS * BLOCKS)]
    scores, chosen = greedy(trainer)
    assert scores == pytest.approx([-alone[layer] for layer in range(4)], abs=1e-5)
    assert chosen == list(grown)
    assert sets(trainer)[1] == list(min(pairs, key=pairs.get))


def test_layers_must_beat_evenly_spaced_ones_beyond_noise(build_trainer, collate, randomise, make_examples):
    """The race is run on one half of the held-out data, and its winner confirmed on the other."""
    taken = set()
    for seed in range(8):
        trainer = build_trainer(SPTSearchTrainer, "darts", num_prompt_layers=1)
        randomise(trainer.model.eval(), seed)
        trainer.gate_dataset = make_examples(120, seed)
        nets = [discretize(copy.deepcopy(trainer.model), [layer], warm_start=True).eval() for layer in range(4)]
        race, confirmation = trainer.gate_dataset[::2], trainer.gate_dataset[1::2]
        raced = [plain_loss(net, race, collate) for net in nets]
        best = raced.index(min(raced))
        blocks = [confirmation[place::BLOCKS] for place in range(BLOCKS)]
        gains = torch.tensor([plain_loss(nets[2], one, collate) - plain_loss(nets[best], one, collate)
                              for one in blocks])  # fmt: skip
        sure = bool(gains.mean() > 2.262 * gains.std() / math.sqrt(BLOCKS))
        assert sets(trainer)[1] == [best if sure else 2]
        assert any(("beyond noise" in remark) is (best != 2) for remark in trainer.remarks) is not sure
        taken.add(sure and best != 2)
    assert taken == {True, False}


def test_too_few_held_out_examples_tell_nothing_and_the_user_is_told(search):
    told = []
    result, _ = search("fair", num_prompt_layers=1, tell=told.append)
    assert result.prompt_layers == [2]
    (remark,) = result.remarks
    assert "12 held-out examples are too few to tell layers apart" in remark or "lowest" in remark
    assert told[-1] == remark


@pytest.mark.parametrize(("way", "looks"), [(perturbation, 1), (sets, 1), (greedy, 1.5)])
def test_a_reading_looks_at_a_part_of_a_large_held_out_half(
    build_trainer, monkeypatch, way, looks, randomise, make_examples
):
    trainer = build_trainer(SPTSearchTrainer, "darts")
    randomise(trainer.model.eval(), 1)
    trainer.gate_dataset = make_examples(480)
    seen = []
    load = trainer.get_eval_dataloader

    def observe(dataset):
        seen.append(len(dataset))
        return load(dataset)

    monkeypatch.setattr(trainer, "get_eval_dataloader", observe)
    monkeypatch.setattr(reading, "MOST_EXAMPLES", 120)
    way(trainer)
    assert 60 <= sum(seen) <= looks * 120


def test_a_way_to_read_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="selection='gates' does not go with searcher='fair'; choose one of sets, "):
        SearchConfig(searcher="fair", selection="gates")
    with pytest.raises(InputError, match="selection='greedy' does not go with searcher='halving'; leave it out"):
        SearchConfig(searcher="halving", selection="greedy")
    with pytest.raises(InputError, match=r"threshold=0.5 is one of gates.*give num_prompt_layers"):
        SearchConfig(searcher="fair", threshold=0.5)


# -- fair ---------------------------------------------------------------------------------------------------------


def test_fair_trains_every_layer_equally_often_and_every_set(build_trainer):
    trainer = build_trainer(FairTrainer, "fair")
    sets = trainer.draw_sets(200, torch.Generator().manual_seed(0))
    assert sets.sum(0).tolist() == [100, 100, 100, 100]
    assert len({tuple(row) for row in sets.tolist()}) == 2**4
    assert trainer.draw_sets(5, torch.Generator()).shape == (5, 4)


def test_a_fair_step_has_the_gradient_of_discrete_networks(build_trainer, collate, randomise):
    trainer = build_trainer(FairTrainer, "fair")
    network = trainer.model
    randomise(network)
    batch = collate([trainer.train_dataset[index] for index in range(4)])
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # transformers 4.57 sets it in train()
    network.train()
    trainer.training_step(network, dict(batch))
    actual = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    trainer._draws = (-1, 0)
    for example, row in enumerate(trainer.draw_sets(4, trainer.draw_generator())):
        layers = row.nonzero().flatten().tolist()
        alone = {name: values[example : example + 1] for name, values in batch.items()}
        with trainer.tuner.prompting_at(layers) if layers else trainer.tuner.gating(row[None]):
            (functional.cross_entropy(network(**alone).logits, alone["labels"]) / 4).backward()
    expected = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(actual.pop(name), gradient, atol=1e-6, rtol=1e-4)
    assert all(not gradient.any() for gradient in actual.values()), "gates do not move"


def test_fair_draws_anew_in_every_pass_and_the_same_with_the_same_seed(build_trainer):
    trainer = build_trainer(FairTrainer, "fair")
    first, second = (trainer.draw_sets(16, trainer.draw_generator()) for _ in range(2))
    assert not torch.equal(first, second)
    again = build_trainer(FairTrainer, "fair")
    assert torch.equal(again.draw_sets(16, again.draw_generator()), first)
    other = build_trainer(FairTrainer, "fair", seed=1)
    assert not torch.equal(other.draw_sets(16, other.draw_generator()), first)


def test_the_history_of_fair_tells_the_loss(search):
    result, _ = search("fair", num_prompt_layers=1)
    assert [entry["step"] for entry in result.history] == list(range(1, 7))
    assert all(0.3 < entry["loss"] < 5 for entry in result.history)


# -- sampled gates ------------------------------------------------------------------------------------------------


def test_binary_concrete_gates_are_open_as_often_as_their_probability_says():
    alphas = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    samples = binary_concrete(alphas, 20_000, torch.Generator().manual_seed(0))
    assert (samples > 0.5).float().mean(0).tolist() == pytest.approx(torch.sigmoid(alphas).tolist(), abs=0.02)
    samples.sum().backward()
    assert (alphas.grad > 0).all()


def test_hard_concrete_gates_are_exactly_closed_or_open_and_pay_for_being_open(build_trainer):
    trainer = build_trainer(L0Trainer, "l0")
    trainer.tuner.set_gate_values([0.1, 0.5, 0.5, 0.9])
    samples = trainer.sample_gates(4000)
    assert samples.shape == (4000, 4)
    opened = (samples > 0).float().mean(0)
    assert (samples == 0).any()
    assert (samples == 1).any()
    assert trainer.gate_penalty().item() == pytest.approx(PENALTY * opened.sum().item(), rel=0.03)
    trainer.gate_penalty().backward()
    assert all(alpha.grad > 0 for alpha in trainer.tuner.gate_parameters().values())


def test_hard_concrete_gates_are_stretched_after_training_too(build_trainer):
    trainer = build_trainer(L0Trainer, "l0")
    trainer.tuner.set_gate_values([0.05, 0.5, 0.75, 0.95])
    assert trainer.gates() == pytest.approx([0.0, 0.5, 0.8, 1.0], abs=1e-6)


@pytest.mark.parametrize(("wanted", "remaining"), [(1, 1), (3, 3)])
def test_progressive_drops_down_to_what_is_wanted(search, wanted, remaining):
    result, _ = search("progressive", steps=8, num_prompt_layers=wanted, warmup_ratio=0.25)
    assert sum(gate > 0 for gate in result.gates) == remaining
    assert set(result.prompt_layers) == {layer for layer, gate in enumerate(result.gates) if gate > 0}


# -- discrete networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", ["halving", "exhaustive"])
def test_discrete_networks_leave_the_search_network_as_it_was(search, build_search_network, searcher):
    network = build_search_network()
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    search(searcher, network=network)
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


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
    monkeypatch.setattr(halving, "MOST_SETS", 1)
    result, _ = search("halving", num_prompt_layers=1, args={"learning_rate": rate})
    *_, last = (entry["losses"] for entry in result.history)
    kept = [layer for layer in range(4) if last[layer] is not None]
    assert result.prompt_layers == [min(kept, key=lambda layer: last[layer])]
    assert len(search("halving", num_prompt_layers=3)[0].prompt_layers) == 3


@pytest.mark.parametrize("searcher", ["halving", "exhaustive"])
def test_discrete_networks_train_for_as_many_epochs_as_are_asked_for(search, searcher):
    result, _ = search(searcher, num_prompt_layers=1, args={"max_steps": -1, "num_train_epochs": 2})
    assert result.steps == {"halving": 4 * 3 + 2 * 3, "exhaustive": 4 * 6}[searcher], "3 batches in the weight half"


def test_exhaustive_takes_the_set_with_the_lowest_loss(search):
    result, _ = search("exhaustive", num_prompt_layers=3)
    (entry,) = result.history
    assert result.steps == math.comb(4, 3) * 6
    assert result.scores == [-loss for loss in entry["losses"]]
    best = max(result.scores)
    assert [layer for layer, score in enumerate(result.scores) if score == best] == result.prompt_layers


def test_exhaustive_refuses_what_would_take_forever(search, monkeypatch):
    monkeypatch.setattr(exhaustive, "MOST_SETS", 5)
    with pytest.raises(InputError, match="would train 6 networks for 2 of 4 layers"):
        search("exhaustive")
