"""Gates: the identities of the mixing weights (method section 3) and what a search network makes of its gates."""

import pytest
import torch
from peft import get_peft_model

from sptune.modeling.prepend.prompt_mixing import mixing_weights

GATES = torch.tensor([[0.3, 0.8, 0.5, 0.9], [0.0, 0.2, 0.0, 1.0], [1.0, 0.4, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture(params=[1.0, 0.5, 0.1])
def tau(request) -> float:
    return request.param


def _presence(gates: torch.Tensor, tau: float) -> tuple[list, list, list]:
    """The weights at every layer, going up: gates is (examples, layers)."""
    v = torch.zeros(len(gates))
    propagated, new, present = [], [], []
    for a in gates.T:
        w_prop, w_new, v = mixing_weights(a, v, tau)
        propagated.append(w_prop)
        new.append(w_new)
        present.append(v)
    return propagated, new, present


# The formulas


def test_presence_is_the_probability_that_some_gate_below_opened(tau):
    _, _, present = _presence(GATES, tau)
    torch.testing.assert_close(torch.stack(present, 1), 1 - (1 - GATES).cumprod(1))


def test_the_two_weights_sum_to_the_presence(tau):
    propagated, new, present = _presence(GATES, tau)
    torch.testing.assert_close(torch.stack(propagated) + torch.stack(new), torch.stack(present))


def test_a_closed_gate_passes_on_what_came_from_below(tau):
    below = torch.tensor([0.0, 0.3, 1.0])
    w_prop, w_new, v = mixing_weights(torch.zeros(3), below, tau)
    torch.testing.assert_close((w_prop, w_new, v), (below, torch.zeros(3), below))


def test_an_open_gate_mixes_by_tau_where_a_prompt_is_present_and_inserts_where_none_is(tau):
    below = torch.tensor([0.0, 1.0])
    w_prop, w_new, v = mixing_weights(torch.ones(2), below, tau)
    torch.testing.assert_close(w_prop, torch.tensor([0.0, 1 - tau]))
    torch.testing.assert_close(w_new, torch.tensor([1.0, tau]))
    torch.testing.assert_close(v, torch.ones(2))


def test_weights_are_the_expectation_over_independent_gates(tau):
    """Enumerates all 16 settings of four gates: each layer's weights are means over the settings' own weights."""
    gates = GATES[0]
    settings = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    chance = torch.where(settings == 1, gates, 1 - gates).prod(-1)
    _, discrete, present = _presence(settings, tau)
    _, expected, expected_presence = _presence(gates[None], tau)
    for layer in range(4):
        torch.testing.assert_close((chance * present[layer]).sum(), expected_presence[layer][0])
        torch.testing.assert_close((chance * discrete[layer]).sum(), expected[layer][0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_of_the_weights_are_finite_at_the_ends(value, tau):
    a = torch.full((4,), value, requires_grad=True)
    below = torch.full((4,), value, requires_grad=True)
    sum(weight.sum() for weight in mixing_weights(a, below, tau)).backward()
    assert a.grad.isfinite().all()
    assert below.grad.isfinite().all()


# The gates of a network


def test_gates_start_half_open(build_backbone, build_config, llama):
    network = get_peft_model(build_backbone(llama), build_config(llama, prompt_layers="search"))
    torch.testing.assert_close(network.base_model.gate_values(), torch.full((4,), 0.5))


def test_gate_values_are_the_sigmoids_of_the_gate_parameters(build_network, bert):
    tuner = build_network(bert, prompt_layers="search", candidate_layers=[3, 1]).base_model
    assert tuner.candidate_layers == [1, 3]
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
    assert network.base_model.candidate_layers == [1, 3]
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
