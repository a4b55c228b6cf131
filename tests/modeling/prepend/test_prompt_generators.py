"""Generators of prompts in front of the text, against their definitions (method section 2)."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sptune import SPTConfig
from sptune.modeling.generators import build_generator
from sptune.modeling.prepend.prompt_generators import adaptive_pool

LENGTH, HIDDEN = 9, 8

MASKS = {
    "full": [1, 1, 1, 1, 1, 1, 1, 1, 1],
    "padded right": [1, 1, 1, 1, 1, 1, 1, 0, 0],
    "padded left": [0, 0, 0, 0, 1, 1, 1, 1, 1],
    "shorter than the slots": [1, 1, 1, 0, 0, 0, 0, 0, 0],
    "one token": [0, 0, 0, 0, 0, 1, 0, 0, 0],
    "in two pieces": [0, 1, 1, 0, 0, 1, 1, 1, 0],
}


def _config(**options) -> SPTConfig:
    return SPTConfig(**{"placement": "prepend", "num_virtual_tokens": 4, "bottleneck_dim": 4, **options})


def _inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(len(MASKS), LENGTH, HIDDEN), torch.tensor(list(MASKS.values())).bool()


@pytest.fixture(params=["linear", "phm"])
def projection(request) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["residual", "anew"])
def residual(request) -> bool:
    return request.param


@pytest.fixture
def build(generator, projection, residual):
    """The generator module of each kind and projection, with random weights."""
    if generator == "static" and (projection == "phm" or residual):
        pytest.skip("a static prompt has no projection, and nothing that it could be added to")
    module = build_generator(_config(generator=generator, projection=projection, residual=residual), HIDDEN)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


# Pooling


@pytest.mark.parametrize("slots", [1, 2, 4, 5, 9, 12])
@pytest.mark.parametrize(("kind", "reference"), [("average", nn.AdaptiveAvgPool1d), ("max", nn.AdaptiveMaxPool1d)])
def test_pooling_equals_torchs_on_each_example_alone(kind, reference, slots):
    states, mask = _inputs()
    pooled = adaptive_pool(states, mask, slots, kind)
    for row in range(len(states)):
        alone = reference(slots)(states[row, mask[row]].T[None])[0].T
        torch.testing.assert_close(pooled[row], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["average", "max"])
def test_pooling_of_no_tokens_is_finite(kind):
    pooled = adaptive_pool(torch.randn(2, LENGTH, HIDDEN), torch.zeros(2, LENGTH, dtype=torch.bool), 3, kind)
    assert pooled.shape == (2, 3, HIDDEN)
    assert pooled.isfinite().all()


def test_phm_prompts_start_about_as_large_as_linear_ones():
    states, mask = torch.randn(4, LENGTH, 64), torch.ones(4, LENGTH, dtype=torch.bool)
    sizes = [
        build_generator(_config(projection=projection, bottleneck_dim=16, residual=False), 64)(states, mask).std()
        for projection in ("linear", "phm")
    ]
    assert 0.5 < sizes[0] / sizes[1] < 2


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"generator": "static"}, 3_840),
        ({"generator": "appg"}, 49_600),
        ({"generator": "mppg"}, 49_600),
        ({"generator": "npg"}, 274_240),
        ({"generator": "appg", "projection": "phm", "phm_dim": 4}, 12_864),
        ({"generator": "appg", "bottleneck_dim": 8}, 6_536),
    ],
    ids=["static", "appg", "mppg", "npg", "appg phm", "appg narrow"],
)
def test_parameter_counts_at_the_size_of_minilm(options, count):
    module = build_generator(
        SPTConfig(placement="prepend", num_virtual_tokens=10, **{"bottleneck_dim": 64, **options}), 384
    )
    assert sum(parameter.numel() for parameter in module.parameters()) == count


# Every generator


@pytest.mark.parametrize("causal", [False, True])
def test_prompts_have_m_vectors_of_the_hidden_size(build, causal):
    assert build(*_inputs(), causal=causal).shape == (len(MASKS), 4, HIDDEN)


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_outside_the_source_never_influence_a_prompt(build, causal):
    states, mask = _inputs()
    noise = 1e3 * torch.randn_like(states)
    noisy = torch.where(mask[..., None], states, noise)
    torch.testing.assert_close(build(noisy, mask, causal=causal), build(states, mask, causal=causal), atol=1e-6, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_an_example_gets_the_prompt_it_gets_alone(build, causal):
    states, mask = _inputs()
    build, states = build.double(), states.double()  # sums of another length round differently
    batched = build(states, mask, causal=causal)
    for row in range(len(states)):
        text = states[row, mask[row]][None]
        alone = build(text, torch.ones(text.shape[:2], dtype=torch.bool), causal=causal)
        torch.testing.assert_close(batched[row], alone[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_an_example_without_source_tokens_gets_a_finite_prompt(build, causal):
    prompts = build(torch.randn(2, LENGTH, HIDDEN), torch.zeros(2, LENGTH, dtype=torch.bool), causal=causal)
    assert prompts.isfinite().all()


def test_every_parameter_of_a_generator_learns(build):
    build(*_inputs()).square().mean().backward()
    for name, parameter in build.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_every_parameter_of_a_fresh_generator_moves_within_three_steps(generator, projection, residual):
    module = build_generator(_config(generator=generator, projection=projection, residual=residual), HIDDEN)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)
    inputs, target = _inputs(), torch.randn(len(MASKS), 4, HIDDEN)
    for _ in range(3):
        optimizer.zero_grad()
        (module(*inputs) - target).square().mean().backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_fresh_generators_differ_between_inputs_from_the_first_step(generator, projection, residual):
    module = build_generator(_config(generator=generator, projection=projection, residual=residual), HIDDEN)
    prompts = module(*_inputs())
    assert (prompts[0] - prompts[1]).abs().max().item() > 0 or generator == "static"


@pytest.mark.parametrize("row", range(len(MASKS)), ids=list(MASKS))
@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
def test_npg_reads_the_first_source_token_of_encoders_and_the_last_of_causal_models(causal, row):
    module = build_generator(_config(generator="npg"), HIDDEN)
    states, mask = _inputs()
    states, mask = states[row : row + 1].requires_grad_(), mask[row : row + 1]
    module(states, mask, causal=causal).sum().backward()
    read = states.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    source = mask[0].nonzero().flatten().tolist()
    assert read == [source[-1] if causal else source[0]]


def test_pooled_slots_read_the_text_in_order():
    module = build_generator(_config(generator="appg", num_virtual_tokens=3, activation="linear"), HIDDEN)
    states = torch.randn(1, LENGTH, HIDDEN).requires_grad_()
    prompts = module(states, torch.ones(1, LENGTH, dtype=torch.bool))
    reads = []
    for slot in range(3):
        (gradient,) = torch.autograd.grad(prompts[0, slot].sum(), states, retain_graph=True)
        reads.append(gradient[0].abs().sum(-1).nonzero().flatten().tolist())
    assert reads == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert all(before[-1] < after[0] for before, after in pairwise(reads))


@pytest.mark.parametrize(("name", "kind"), [("appg", "average"), ("mppg", "max")])
def test_residual_prompts_begin_as_the_pooled_text_and_the_learned_change_is_added(name, kind, projection):
    states, mask = _inputs()
    module = build_generator(_config(generator=name, projection=projection), HIDDEN)
    pieces = adaptive_pool(states, mask, 4, kind)
    torch.testing.assert_close(module(states, mask), pieces)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    anew = build_generator(_config(generator=name, projection=projection, residual=False), HIDDEN)
    anew.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(states, mask), pieces + anew(states, mask))


def test_residual_attention_prompts_begin_inside_the_text_states(projection):
    states, mask = _inputs()
    prompts = build_generator(_config(generator="attention", projection=projection), HIDDEN)(states, mask)
    for row in range(len(states)):
        text = states[row, mask[row]]
        assert (prompts[row] <= text.amax(0) + 1e-5).all()
        assert (prompts[row] >= text.amin(0) - 1e-5).all()
