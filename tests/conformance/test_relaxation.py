"""Gates all closed are the backbone; gates open or closed are the discrete network (method section 3)."""

import copy

import pytest
import torch
from torch import nn

from assertions import assert_same
from sptune import discretize


def _open(tuner, layers):
    tuner.set_gate_values([float(layer in layers) for layer in tuner.generator_layers])


def test_prompts_matter(build_network, build_backbone, build_batch, logits_of, case):
    """Otherwise every other test here would pass on a network without prompts."""
    batch = build_batch(case)
    backbone = logits_of(build_backbone(case), batch)
    for prompt_layers in ("search", [3], [1, 3]):
        prompted = logits_of(build_network(case, prompt_layers=prompt_layers), batch)
        assert (prompted - backbone).abs().max() > 1e-2, prompt_layers


@pytest.mark.parametrize("mixing_rate", [1.0, 0.5])
def test_closed_gates_are_the_backbone(build_network, build_backbone, build_batch, logits_of, case, mixing_rate):
    network = build_network(case, prompt_layers="search", mixing_rate=mixing_rate)
    _open(network.base_model, [])
    batch = build_batch(case)
    assert_same(logits_of(network, batch), logits_of(build_backbone(case), batch))


@pytest.mark.parametrize("layers", [[1], [3], [1, 3], [2, 3], "all"], ids=str)
@pytest.mark.parametrize("mixing_rate", [1.0, 0.5])
def test_open_or_closed_gates_are_the_discrete_network(
    build_network, build_batch, logits_of, case, layers, mixing_rate
):
    layers = case.candidates if layers == "all" else layers
    network = build_network(case, prompt_layers="search", mixing_rate=mixing_rate)
    _open(network.base_model, layers)
    batch = build_batch(case)
    searched = logits_of(network, batch)
    final = discretize(copy.deepcopy(network), layers, warm_start=True).eval()
    assert_same(searched, logits_of(final, batch))
    network.base_model.set_gate_values([0.3] * len(case.candidates))
    with network.base_model.prompting_at(layers):
        assert_same(logits_of(network, batch), logits_of(final, batch))


def test_prompting_at_ends_with_its_block_and_refuses_strangers(build_network, build_batch, logits_of, bert):
    network = build_network(bert, prompt_layers="search", candidate_layers=[1, 2])
    tuner, batch = network.base_model, build_batch(bert)
    before = logits_of(network, batch)
    with tuner.prompting_at([2]):
        assert tuner.generator_layers == [2]
    assert torch.equal(logits_of(network, batch), before)
    for layers in ([], [1, 3]):
        with pytest.raises(ValueError, match=r"choose some of \[1, 2\]"):
            tuner.prompting_at(layers)


def test_nearly_closed_gates_are_nearly_the_backbone(build_network, build_backbone, build_batch, logits_of, case):
    """The weight of a prompt in attention goes to zero continuously with its inclusion probability."""
    network, batch = build_network(case, prompt_layers="search"), build_batch(case)
    network.base_model.set_gate_values([1e-5] * len(case.candidates))
    difference = (logits_of(network, batch) - logits_of(build_backbone(case), batch)).abs().max()
    assert 0 < difference < 1e-2


def test_a_prompt_of_inclusion_probability_one_half_gets_half_the_weight(build_network, build_batch, logits_of, case):
    """Two copies of every prompt with inclusion probability 0.5 get the attention of one copy, positions apart."""

    def logits(copies, inclusion):
        options = {"prompt_layers": "search", "candidate_layers": [3], "generator": "static"}
        network = build_network(case, num_virtual_tokens=2 * copies, **options)
        prompt = torch.randn(2, 32, generator=torch.Generator().manual_seed(7))
        network.base_model.generator_parameters()[3][0].data.copy_(prompt.repeat(copies, 1))
        network.base_model.set_gate_values([inclusion])
        for name, tensor in [*network.named_buffers(), *network.named_parameters()]:
            if "inv_freq" in name or "rel_embeddings" in name:
                tensor.data.zero_()
        return logits_of(network, build_batch(case))

    assert_same(logits(copies=2, inclusion=0.5), logits(copies=1, inclusion=1.0))
    assert (logits(copies=2, inclusion=1.0) - logits(copies=1, inclusion=1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [[1], [1, 3]], ids=str)
def test_every_generator_relaxes_exactly(build_network, build_batch, logits_of, some_case, generator, layers):
    network = build_network(some_case, prompt_layers="search", generator=generator, mixing_rate=0.5)
    _open(network.base_model, layers)
    batch = build_batch(some_case)
    searched = logits_of(network, batch)
    final = discretize(copy.deepcopy(network), layers, warm_start=True).eval()
    assert_same(searched, logits_of(final, batch))


def test_phm_generators_relax_exactly(build_network, build_batch, logits_of, some_case):
    network = build_network(some_case, prompt_layers="search", projection="phm")
    _open(network.base_model, [1, 3])
    batch = build_batch(some_case)
    searched = logits_of(network, batch)
    final = discretize(copy.deepcopy(network), [1, 3], warm_start=True).eval()
    assert_same(searched, logits_of(final, batch))


def test_always_visible_prompts_are_discrete_when_every_gate_is_open(build_network, build_batch, logits_of, case):
    """With an interpolation weight of 1 and all gates open, no layer mixes in a propagated prompt."""
    network = build_network(case, prompt_layers="search", visibility="always", mixing_rate=1.0)
    _open(network.base_model, case.candidates)
    batch = build_batch(case)
    searched = logits_of(network, batch)
    final = discretize(copy.deepcopy(network), case.candidates, warm_start=True).eval()
    assert_same(searched, logits_of(final, batch))


def test_always_visible_prompts_are_not_the_backbone_when_closed(
    build_network, build_backbone, build_batch, logits_of, case
):
    """A prompt that is not included is still seen: `visibility="gated"` corrects this."""
    network = build_network(case, prompt_layers="search", visibility="always")
    _open(network.base_model, [])
    batch = build_batch(case)
    assert (logits_of(network, batch) - logits_of(build_backbone(case), batch)).abs().max() > 1e-2


# What discretize leaves behind


def test_discretize_keeps_the_backbone_object_and_leaves_no_gate(build_network, case):
    network = build_network(case, prompt_layers="search")
    backbone = network.get_base_model()
    final = discretize(network, [1, 3])
    assert final.get_base_model() is backbone
    assert final.base_model.generator_layers == [1, 3]
    assert not any("gate" in name and p.requires_grad for name, p in final.named_parameters())
    assert final.active_peft_config.prompt_layers == [1, 3]


def test_discretize_draws_fresh_generators_unless_it_starts_warm(build_network, some_case):
    network = build_network(some_case, prompt_layers="search")
    searched = {
        layer: [parameter.detach().clone() for parameter in parameters]
        for layer, parameters in network.base_model.generator_parameters().items()
    }
    warm = discretize(copy.deepcopy(network), [1, 3], warm_start=True)
    fresh = discretize(network, [1, 3])
    for layer in (1, 3):
        assert all(map(torch.equal, warm.base_model.generator_parameters()[layer], searched[layer])), (
            "a warm start keeps what was searched"
        )
        assert not any(
            parameter.std() > 0 and torch.equal(parameter, old)
            for parameter, old in zip(fresh.base_model.generator_parameters()[layer], searched[layer], strict=True)
        )


@pytest.mark.parametrize("warm_start", [False, True])
def test_discretize_resets_the_head_unless_it_starts_warm(build_network, build_backbone, some_case, warm_start):
    network = build_network(some_case, "classifier", prompt_layers="search")
    trained = {name: p.detach().clone() for name, p in network.named_parameters() if "modules_to_save" in name}
    untrained = dict(build_backbone(some_case, "classifier").named_parameters())
    assert trained
    final = dict(discretize(network, [1, 3], warm_start=warm_start).named_parameters())
    for name, parameter in trained.items():
        original = untrained[name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")]
        assert torch.equal(final[name], parameter if warm_start else original), name
        assert final[name].requires_grad, name


def test_a_discretized_network_trains_only_its_prompts_and_head(build_network, some_case):
    final = discretize(build_network(some_case, "classifier", prompt_layers="search"), [1, 3])
    prompts = [p for ps in final.base_model.generator_parameters().values() for p in ps]
    heads = [p for name, p in final.named_parameters() if "modules_to_save" in name]
    trainable = {id(parameter) for parameter in final.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in prompts + heads}


def test_discretize_refuses_a_layer_that_was_not_a_candidate(build_network, bert):
    network = build_network(bert, prompt_layers="search", candidate_layers=[1, 2])
    with pytest.raises(ValueError, match="3"):
        discretize(network, [1, 3], warm_start=True)


def test_discretize_refuses_a_final_network(build_network, bert):
    with pytest.raises(ValueError, match="search"):
        discretize(build_network(bert, prompt_layers=[1, 3]), [1])


# Masks over layers, and what leaves the last block


def test_a_layer_mask_closes_gates_for_its_example_alone(build_network, build_batch, case):
    network = build_network(case, prompt_layers="search", mixing_rate=0.5)
    tuner, batch = network.base_model, build_batch(case)
    gates = tuner.gate_values()
    masks = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]])[:, : len(gates)]
    with torch.no_grad():
        with tuner.gating(gates * masks):
            masked = network(**batch).logits
        for row in range(3):
            tuner.set_gate_values(gates * masks[row])
            real = batch["attention_mask"][row].bool()
            assert_same(masked[row][real], network(**batch).logits[row][real])


def test_given_gates_end_with_their_block(build_network, build_batch, logits_of, bert):
    network = build_network(bert, prompt_layers="search")
    batch = build_batch(bert)
    before = logits_of(network, batch)
    with network.base_model.gating(torch.zeros(3, 4)):
        assert not torch.equal(logits_of(network, batch), before)
    assert torch.equal(logits_of(network, batch), before)


def test_gates_of_another_batch_are_refused(build_network, build_batch, logits_of, bert):
    network = build_network(bert, prompt_layers="search")
    with network.base_model.gating(torch.ones(2, 4)), pytest.raises(ValueError, match=r"2.*3|3.*2"):
        logits_of(network, build_batch(bert))


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_recorded_states_are_what_leaves_the_last_block(build_network, build_batch, case, prompt_layers):
    network, batch = build_network(case, "none", prompt_layers=prompt_layers), build_batch(case)
    last_block = []
    norms = [m for m in network.modules() if isinstance(m, nn.Module) and type(m).__name__.endswith(("RMSNorm",))]
    norms += [m for name, m in network.named_modules() if name.endswith("ln_f")]
    if case.causal:  # a final norm stands between the last block and the output
        norms[-1].register_forward_pre_hook(lambda module, args: last_block.append(args[0]))
    with network.base_model.record_final_states() as states:
        outputs = network(**batch)
    (recorded,) = states
    assert recorded.shape == (*batch["input_ids"].shape, 32)
    assert recorded.requires_grad
    assert torch.equal(recorded, last_block[-1] if case.causal else outputs.last_hidden_state)


def test_nothing_is_recorded_outside_the_block(build_network, build_batch, logits_of, bert):
    network = build_network(bert)
    with network.base_model.record_final_states() as states:
        logits_of(network, build_batch(bert))
    logits_of(network, build_batch(bert))
    assert len(states) == 1
