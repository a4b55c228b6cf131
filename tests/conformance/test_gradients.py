"""Training: what learns, what stays still, and gradient checkpointing."""

import pytest
import torch


def _gradients(network, batch):
    network.zero_grad()
    network.train()
    network(**batch).logits.square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_every_trainable_parameter_learns_and_no_other(build_network, build_batch, case, prompt_layers):
    network = build_network(case, prompt_layers=prompt_layers, mixing_rate=0.5)
    gradients = _gradients(network, build_batch(case))
    assert set(gradients) == {name for name, p in network.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_checkpointing_gives_the_same_gradients(build_network, build_batch, case, prompt_layers, use_reentrant):
    network = build_network(case, prompt_layers=prompt_layers, mixing_rate=0.5)
    batch = build_batch(case)
    expected = _gradients(network, batch)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        network.enable_input_require_grads()
    torch.testing.assert_close(_gradients(network, batch), expected, atol=1e-6, rtol=1e-4)


def test_checkpointing_keeps_targets_out_of_the_source(build_network, build_batch, causal_case):
    """Blocks run again in backward, when the labels of the forward are no longer at hand."""
    network = build_network(causal_case)
    batch = build_batch(causal_case)
    number = batch["attention_mask"].cumsum(-1) - 1
    batch["labels"] = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (number < 3), -100)
    expected = _gradients(network, batch)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(_gradients(network, batch), expected, atol=1e-6, rtol=1e-4)


def test_checkpointing_two_forwards_before_one_backward(build_network, build_batch, case):
    """As a search does: the second forward must not change what the first is recomputed with."""
    network = build_network(case, prompt_layers="search")
    first, second = build_batch(case), build_batch(case, (4, 8), side="left")
    masks = torch.ones(3, len(case.candidates))
    masks[0, 1] = masks[2, 0] = 0

    def gradients():
        network.zero_grad()
        network.train()
        with network.base_model.gating(0.5 * masks):
            one = network(**first).logits
        (one.square().mean() + network(**second).logits.square().mean()).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    expected = gradients()
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-4)


def test_layers_below_the_first_prompt_layer_need_no_backward_pass(build_network, build_batch, case):
    network = build_network(case, prompt_layers=[2])
    states = network(**build_batch(case), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True, True]


def test_training_steps_leave_the_backbone_bit_for_bit(build_network, build_backbone, build_batch, train_step, case):
    network = build_network(case, prompt_layers="search")
    for _ in range(2):
        train_step(network, build_batch(case))
    before = build_backbone(case).state_dict()
    after = network.unload().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_in_half_precision_are_numbers_at_closed_gates(build_network, build_batch, case, side):
    network = build_network(case, prompt_layers="search")
    network.base_model.set_gate_values([0.0] * len(case.candidates))
    network.get_base_model().half()
    logits = network.train()(**build_batch(case, side=side, extra=2)).logits
    (2.0**4 * logits.float().mean()).backward()  # scaled, as in training
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
