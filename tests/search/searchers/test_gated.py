"""Gumbel, L0 and progressive: what each does to the gates."""

import pytest
import torch

from sptune.search import SPTSearchTrainer
from sptune.search.searchers.gumbel import binary_concrete
from sptune.search.searchers.l0 import PENALTY, HardConcreteGates


def test_binary_concrete_gates_are_open_as_often_as_their_probability_says():
    alphas = torch.tensor([-2.0, 0.0, 1.0], requires_grad=True)
    samples = binary_concrete(alphas, 20_000, torch.Generator().manual_seed(0))
    assert (samples > 0.5).float().mean(0).tolist() == pytest.approx(torch.sigmoid(alphas).tolist(), abs=0.02)
    samples.sum().backward()
    assert (alphas.grad > 0).all()


def test_hard_concrete_gates_are_exactly_closed_or_open_and_pay_for_being_open(build_trainer):
    trainer = build_trainer(SPTSearchTrainer, "l0", gate_sampler=HardConcreteGates)
    trainer.tuner.set_gate_values([0.1, 0.5, 0.5, 0.9])
    samples = trainer.gate_sampler.sample(4000)
    assert samples.shape == (4000, 4)
    opened = (samples > 0).float().mean(0)
    assert (samples == 0).any()
    assert (samples == 1).any()
    assert trainer.gate_sampler.penalty().item() == pytest.approx(PENALTY * opened.sum().item(), rel=0.03)
    trainer.gate_sampler.penalty().backward()
    assert all(alpha.grad > 0 for alpha in trainer.tuner.gate_parameters().values())


def test_hard_concrete_gates_are_stretched_after_training_too(build_trainer):
    trainer = build_trainer(SPTSearchTrainer, "l0", gate_sampler=HardConcreteGates)
    trainer.tuner.set_gate_values([0.05, 0.5, 0.75, 0.95])
    assert trainer.gates() == pytest.approx([0.0, 0.5, 0.8, 1.0], abs=1e-6)


@pytest.mark.parametrize(("wanted", "remaining"), [(1, 1), (3, 3)])
def test_progressive_drops_down_to_what_is_wanted(search, wanted, remaining):
    result, _ = search("progressive", steps=8, num_prompt_layers=wanted, warmup_ratio=0.25)
    assert sum(gate > 0 for gate in result.gates) == remaining
    assert set(result.prompt_layers) == {layer for layer, gate in enumerate(result.gates) if gate > 0}
