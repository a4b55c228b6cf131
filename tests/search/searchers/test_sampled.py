"""`sampled`: sets are drawn as Plackett and Luce say, and the gates learn from the losses of what was drawn."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback

from sptune.search import SearchConfig, SPTSearchTrainer, search_prompt_layers
from sptune.search.searchers.sampled import SampledSets, draw_pairs, draw_sets, set_log_probability

SampledTrainer = partial(SPTSearchTrainer, gate_sampler=SampledSets)
P = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_probabilities_of_all_ordered_sets_add_up_to_one(size):
    orders = torch.tensor(list(itertools.permutations(range(4), size)))
    assert set_log_probability(P.log(), orders).exp().sum() == pytest.approx(1, abs=1e-6)


def test_sets_are_drawn_by_their_probability():
    orders = torch.tensor(list(itertools.permutations(range(4), 2)))
    drawn = draw_sets(P.log(), 2, 40_000, torch.Generator().manual_seed(0))
    counts = torch.tensor([int((drawn == order).all(1).sum()) for order in orders]) / len(drawn)
    torch.testing.assert_close(counts, set_log_probability(P.log(), orders).exp(), atol=0.01, rtol=0)


def test_a_set_has_no_layer_twice():
    drawn = draw_sets(torch.zeros(4), 3, 100, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    assert draw_sets(torch.zeros(2), 3, 5, torch.Generator()).shape == (5, 2)


@pytest.fixture(params=["add", "prepend"])
def trainer(request, build_supernet, build_args, examples, collate, randomize):
    network = build_supernet(placement=request.param)
    randomize(network)
    search = SearchConfig(searcher="sampled", num_prompt_layers=1, warmup_ratio=0.0)
    return SampledTrainer(
        network, build_args(max_steps=4), train_dataset=examples, search=search, data_collator=collate
    )


def test_row_losses_are_those_of_the_rows_alone(trainer, collate, examples):
    trainer.model.eval()
    gates = torch.eye(4)[[0, 1, 2, 3, 1, 2]]
    with torch.no_grad():
        with trainer.tuner.gating(gates):
            together = trainer.row_losses(trainer.model, collate(examples[:6]))
        for row in range(6):
            with trainer.tuner.prompting_at([int(gates[row].argmax())]):
                batch = collate([examples[row]])
                alone = functional.cross_entropy(trainer.model(**batch).logits, batch["labels"])
            assert together[row] == pytest.approx(float(alone), abs=1e-5)


@pytest.mark.parametrize(
    ("backbone", "labels", "args"),
    [
        ({"num_labels": 1}, [1.0, 2.0, 0.5, 3.0], {}),
        ({"num_labels": 2, "problem_type": "regression"}, [[1.0, 2.0], [0.5, 3.0], [4.0, 1.0], [0.0, 2.0]], {}),
        ({"num_labels": 3}, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], {}),
        ({"return_dict": False}, [0, 1, 2, 1], {}),
        ({}, [0, 1, 2, 1], {"label_smoothing_factor": 0.3}),
    ],
    ids=str,
)
def test_the_mean_of_the_row_losses_is_the_loss_of_training(
    build_supernet, build_args, examples, collate, backbone, labels, args
):
    search = SearchConfig(searcher="sampled", num_prompt_layers=1)
    network = build_supernet(backbone=backbone)
    trainer = SampledTrainer(network, build_args(**args), train_dataset=examples, search=search, data_collator=collate)
    batch = {**collate(examples[:4]), "labels": torch.tensor(labels)}
    trainer.model.eval()
    with torch.no_grad():
        losses = trainer.row_losses(trainer.model, batch)
        mean, _ = trainer._mean_loss(trainer.model, batch)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), mean)


def test_whole_numbers_are_numbers_where_the_model_gives_one(build_supernet, build_args, examples, collate):
    search = SearchConfig(searcher="sampled", num_prompt_layers=1)
    trainer = SampledTrainer(
        build_supernet(backbone={"num_labels": 1}), build_args(), train_dataset=examples, search=search,
        data_collator=collate,
    )  # fmt: skip
    batch = collate(examples[:4])
    trainer.model.eval()
    with torch.no_grad():
        losses = trainer.row_losses(trainer.model, batch)
        expected = (trainer.model(**batch).logits[:, 0] - batch["labels"]).square()
    torch.testing.assert_close(losses, expected)


def test_the_gradient_points_to_the_layers_with_lower_losses(trainer, collate, examples):
    """Over many draws it is the covariance of the sets' losses with the gradient of their log-probability."""
    model, batch = trainer.model.eval(), collate(examples)
    with torch.no_grad():
        losses = []
        for layer in range(4):
            with trainer.tuner.prompting_at([layer]):
                losses.append(trainer.row_losses(model, batch))
    losses = torch.stack(losses)
    # A set is one of four layers, p is uniform: the covariance is (loss - mean loss) / 4, differences not clipped.
    expected = (losses.mean(1) - losses.mean()) / 4
    trainer.get_train_dataloader()
    rounds = 400
    for draw in range(rounds):
        trainer.state.global_step = draw
        trainer.gate_sampler.backward_architecture(model, batch, None)
    gradient = torch.cat([alpha.grad for alpha in trainer.alpha_parameters]) / rounds
    assert losses.std(0).max() < 1.4  # so that nothing is clipped by much
    torch.testing.assert_close(gradient, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_rows_are_discrete_networks_of_the_wanted_size(build_supernet, build_args, examples, collate, size):
    search = SearchConfig(searcher="sampled", num_prompt_layers=size)
    trainer = SampledTrainer(
        build_supernet(), build_args(), train_dataset=examples, search=search, data_collator=collate
    )
    rows = trainer.gate_sampler.sample(50)
    assert set(rows.unique().tolist()) == {0.0, 1.0}
    assert rows.sum(1).tolist() == [size] * 50
    assert rows.sum(0).min() > 0


def test_gates_are_probabilities_and_stand_in_the_history(build_supernet, build_args, examples, collate):
    search = SearchConfig(searcher="sampled", num_prompt_layers=2, warmup_ratio=0.5)
    network = build_supernet(placement="add")
    result = search_prompt_layers(network, examples, build_args(max_steps=6), search, data_collator=collate)
    assert sum(result.gates) == pytest.approx(1, abs=1e-6)
    assert result.history[-1]["gates"] == result.gates
    assert result.history[2]["gates"] == pytest.approx([0.25] * 4)  # only weights learn at first
    assert result.history[5]["gates"] != result.history[3]["gates"]


def test_pairs_are_of_different_sets():
    order = draw_pairs(4, 2, 200, torch.Generator().manual_seed(0))
    members = torch.zeros(400, 4).scatter_(1, order, 1.0)
    assert not (members[:200] == members[200:]).all(1).any()
    assert draw_pairs(2, 2, 3, torch.Generator()).shape == (6, 2)  # there is but one set


def test_the_architecture_step_reads_the_cache(build_supernet, build_args, examples, collate):
    network = build_supernet(candidate_layers=[2, 3], placement="add")
    runs = []
    lowest = network.base_model.backbone.layers[0]  # a block that is passed over is called all the same
    lowest.attention.register_forward_hook(lambda *args: runs.append(1))
    search = SearchConfig(searcher="sampled", num_prompt_layers=1, warmup_ratio=0.0)
    args = build_args(num_train_epochs=6, max_steps=-1)
    trainer = SampledTrainer(network, args, train_dataset=examples, search=search, data_collator=collate)
    trainer.train()
    few = len(runs)
    runs.clear()
    trainer = SampledTrainer(
        network, args, train_dataset=examples, search=search, data_collator=collate, activation_cache=None
    )
    trainer.train()
    assert few < len(runs) / 2


@pytest.mark.parametrize("fields", [{"threshold": 0.5}, {"threshold": 0.5, "selection": "gates"}], ids=str)
def test_a_threshold_has_no_meaning_for_probabilities(fields):
    with pytest.raises(ValueError, match="add up to 1"):
        SearchConfig(searcher="sampled", **fields)


def test_gates_that_make_no_discrete_network_are_refused(build_supernet, build_args, examples, collate):
    search = SearchConfig(searcher="sampled", num_prompt_layers=1)
    with pytest.raises(ValueError, match="visibility='always'"):
        SampledTrainer(
            build_supernet(visibility="always"),
            build_args(),
            train_dataset=examples,
            search=search,
            data_collator=collate,
        )


class ArchitectureGradients(TrainerCallback):
    """Keeps the gradients of the gate parameters at each step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        alphas = model.base_model.gate_parameters().values()
        self.steps.append(torch.cat([alpha.grad for alpha in alphas]))


def test_a_step_with_fewer_micro_batches_has_the_mean_gradient_over_those(
    build_supernet, build_args, make_examples, collate, randomize
):
    """An epoch of two batches is one step, whether two or four micro-batches are accumulated."""
    gradients, losses = [], []
    for accumulation in (2, 4):
        network = build_supernet(placement="add")
        randomize(network)
        search = SearchConfig(searcher="sampled", num_prompt_layers=1, warmup_ratio=0.0)
        args = build_args(max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)
        record = ArchitectureGradients()
        trainer = SampledTrainer(
            network, args, train_dataset=make_examples(8), search=search, data_collator=collate, callbacks=[record]
        )
        trainer.train()
        gradients.append(record.steps[0])
        losses.append(trainer.history.entries[0]["gate_loss"])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].any()
    assert losses[1] == pytest.approx(losses[0])
