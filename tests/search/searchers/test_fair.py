"""Fair training: every layer equally often, each example in its own discrete network."""

import torch
from torch.nn import functional

from sptune.search.searchers.fair import FairTrainer


def test_fair_trains_every_layer_equally_often_and_every_set(build_trainer):
    trainer = build_trainer(FairTrainer, "fair")
    sets = trainer.draw_sets(200, torch.Generator().manual_seed(0))
    assert sets.sum(0).tolist() == [100, 100, 100, 100]
    assert len({tuple(row) for row in sets.tolist()}) == 2**4
    assert trainer.draw_sets(5, torch.Generator()).shape == (5, 4)


def test_a_fair_step_has_the_gradient_of_discrete_networks(build_trainer, collate, randomize):
    trainer = build_trainer(FairTrainer, "fair")
    network = trainer.model
    randomize(network)
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
