"""Gates: their values and gradients in a supernet (method section 3)."""

import pytest
import torch
from peft import get_peft_model

from sptune.modeling.gates import at_least_float32, gate_logits


def test_gate_logits_invert_the_sigmoid_and_keep_the_ends_exact():
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    logits = gate_logits(values)
    assert logits[[0, 3]].tolist() == [float("-inf"), float("inf")]
    torch.testing.assert_close(logits.sigmoid(), values)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_gates_are_computed_in_float32_or_wider(dtype, expected):
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == expected


def test_gates_start_half_open(build_backbone, build_config, llama):
    network = get_peft_model(build_backbone(llama), build_config(llama, prompt_layers="search"))
    torch.testing.assert_close(network.base_model.gate_values(), torch.full((4,), 0.5))


def test_gate_values_are_the_sigmoids_of_the_gate_parameters(build_network, bert):
    tuner = build_network(bert, prompt_layers="search", candidate_layers=[3, 1]).base_model
    assert tuner.generator_layers == [1, 3]
    assert list(tuner.gate_parameters()) == [1, 3]
    alphas = torch.cat(list(tuner.gate_parameters().values()))
    torch.testing.assert_close(tuner.gate_values(), alphas.sigmoid())
    assert not tuner.gate_values().requires_grad


def test_gate_values_are_set_exactly(build_network, bert):
    tuner = build_network(bert, prompt_layers="search").base_model
    tuner.set_gate_values([0.0, 0.25, 1.0, 0.5])
    values = tuner.gate_values()
    assert values[[0, 2]].tolist() == [0.0, 1.0]
    torch.testing.assert_close(values, torch.tensor([0.0, 0.25, 1.0, 0.5]))


@pytest.mark.parametrize("values", [[0.5, 0.5], [0.5, 0.5, 0.5, 1.5], [0.5, 0.5, 0.5, float("nan")]], ids=str)
def test_impossible_gate_values_are_refused(build_network, bert, values):
    tuner = build_network(bert, prompt_layers="search").base_model
    with pytest.raises(ValueError, match=r"(?i)gate"):
        tuner.set_gate_values(values)


def test_a_final_network_has_no_gates(build_network, bert):
    network = build_network(bert, prompt_layers=[1, 3])
    for ask in (network.base_model.gate_parameters, network.base_model.gate_values):
        with pytest.raises(ValueError, match="search"):
            ask()
    assert network.base_model.generator_layers == [1, 3]
    counts = {layer: sum(p.numel() for p in ps) for layer, ps in network.base_model.generator_parameters().items()}
    assert network.get_nb_trainable_parameters()[0] == sum(counts.values())


@pytest.mark.parametrize("values", [[0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("mixing_rate", [1.0, 0.5])
def test_gradients_of_a_network_are_finite_with_gates_at_the_ends(
    build_network, build_batch, some_case, values, mixing_rate
):
    network = build_network(some_case, prompt_layers="search", mixing_rate=mixing_rate)
    network.base_model.set_gate_values(values)
    network(**build_batch(some_case)).logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


def test_gate_gradients_agree_with_finite_differences(build_network, build_batch, some_case):
    network = build_network(some_case, prompt_layers="search", mixing_rate=0.5).double()
    batch = build_batch(some_case)
    tuner = network.base_model
    tuner.set_gate_values([0.3, 0.6, 0.2, 0.8])

    def loss() -> torch.Tensor:
        return network(**batch).logits.square().mean()

    loss().backward()
    for layer, alpha in tuner.gate_parameters().items():
        value, step = alpha.data.clone(), 1e-2  # a coarse step: Llama's norms and rotary tables stay in float32
        with torch.no_grad():
            alpha.data.copy_(value + step)
            above = loss()
            alpha.data.copy_(value - step)
            below = loss()
            alpha.data.copy_(value)
        difference = ((above - below) / (2 * step)).item()
        assert alpha.grad.item() == pytest.approx(difference, rel=1e-2, abs=1e-6), layer


@pytest.mark.parametrize("visibility", ["gated", "always"])
def test_gates_between_the_ends_move_the_output_smoothly(build_network, build_batch, logits_of, bert, visibility):
    network = build_network(bert, prompt_layers="search", visibility=visibility)
    outputs = []
    for value in (0.4, 0.4001, 0.9):
        network.base_model.set_gate_values([value] * 4)
        outputs.append(logits_of(network, build_batch(bert)))
    near, far = ((outputs[0] - output).abs().max() for output in outputs[1:])
    assert 0 < near < 0.05 < far
