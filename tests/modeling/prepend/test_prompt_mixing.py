"""The identities of the mixing weights (method section 3)."""

import pytest
import torch

from sptune.modeling.prepend.prompt_mixing import mixing_weights

GATES = torch.tensor([[0.3, 0.8, 0.5, 0.9], [0.0, 0.2, 0.0, 1.0], [1.0, 0.4, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture(params=[1.0, 0.5, 0.1])
def tau(request) -> float:
    return request.param


def _inclusion(gates: torch.Tensor, tau: float) -> tuple[list, list, list]:
    """The weights at every layer, going up: gates is (examples, layers)."""
    v = torch.zeros(len(gates))
    propagated, new, present = [], [], []
    for a in gates.T:
        w_prop, w_new, v = mixing_weights(a, v, tau)
        propagated.append(w_prop)
        new.append(w_new)
        present.append(v)
    return propagated, new, present


def test_inclusion_is_the_probability_that_some_gate_below_opened(tau):
    _, _, present = _inclusion(GATES, tau)
    torch.testing.assert_close(torch.stack(present, 1), 1 - (1 - GATES).cumprod(1))


def test_the_two_weights_sum_to_the_inclusion(tau):
    propagated, new, present = _inclusion(GATES, tau)
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
    _, discrete, present = _inclusion(settings, tau)
    _, expected, expected_inclusion = _inclusion(gates[None], tau)
    for layer in range(4):
        torch.testing.assert_close((chance * present[layer]).sum(), expected_inclusion[layer][0])
        torch.testing.assert_close((chance * discrete[layer]).sum(), expected[layer][0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_of_the_weights_are_finite_at_the_ends(value, tau):
    a = torch.full((4,), value, requires_grad=True)
    below = torch.full((4,), value, requires_grad=True)
    sum(weight.sum() for weight in mixing_weights(a, below, tau)).backward()
    assert a.grad.isfinite().all()
    assert below.grad.isfinite().all()
