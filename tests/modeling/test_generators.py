"""Generators of added offsets and the projections of all generators, against their definitions (method section 8)."""

import pytest
import torch
from torch import nn

from sptune import SPTConfig
from sptune.modeling.generators import PHMLinear, build_generator

HIDDEN = 8


@pytest.fixture(params=["linear", "phm"])
def projection(request) -> str:
    return request.param


@pytest.mark.parametrize("phm_dim", [1, 2, 4])
def test_phm_layer_is_the_sum_of_kronecker_products(phm_dim):
    layer = PHMLinear(8, 12, phm_dim, std=1.0)
    nn.init.normal_(layer.bias)
    weight = sum(torch.kron(layer.A[j], layer.B[j]) for j in range(phm_dim))
    states = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(states), states @ weight + layer.bias, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.weight(), weight)


def test_phm_layer_refuses_a_dimension_that_does_not_divide():
    with pytest.raises(ValueError, match=r"phm_dim.*3.*8"):
        PHMLinear(8, 12, 3, std=1.0)


def test_a_phm_dimension_must_divide_the_hidden_size():
    with pytest.raises(ValueError, match=r"phm_dim.*4.*30"):
        build_generator(SPTConfig(projection="phm"), 30)


@pytest.mark.parametrize("generator", ["bottleneck", "static"])
def test_a_fresh_generator_adds_nothing_unless_it_is_drawn_at_random(generator, projection):
    config = {"generator": generator, "projection": projection, "bottleneck_dim": 4}
    states = torch.randn(2, 5, HIDDEN)
    assert not build_generator(SPTConfig(**config), HIDDEN)(states).any()
    assert build_generator(SPTConfig(**config, init_weights=False), HIDDEN)(states).any()


def test_the_bottleneck_is_its_formula():
    module = build_generator(SPTConfig(bottleneck_dim=4, activation="gelu", init_weights=False), HIDDEN)
    nn.init.normal_(module.up.bias)
    states = torch.randn(2, 5, HIDDEN)
    inner = nn.functional.gelu(states @ module.down.weight.T + module.down.bias)
    torch.testing.assert_close(module(states), inner @ module.up.weight.T + module.up.bias)


def test_a_static_offset_is_the_same_for_every_token():
    module = build_generator(SPTConfig(generator="static", init_weights=False), HIDDEN)
    assert torch.equal(module(torch.randn(2, 5, HIDDEN)), module(torch.randn(1, 3, HIDDEN)))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * 8 * 384 + 8 + 384),
        ({"generator": "static"}, 384),
        ({"projection": "phm", "phm_dim": 4}, 2 * (4**3 + 8 * 384 // 4) + 8 + 384),
    ],
    ids=["bottleneck", "static", "phm"],
)
def test_offset_parameters_at_the_size_of_minilm(options, count):
    module = build_generator(SPTConfig(**{"bottleneck_dim": 8, **options}), 384)
    assert sum(parameter.numel() for parameter in module.parameters()) == count
