"""What comes out: shapes, data types, hidden states, heads."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3], [0]], ids=str)
def test_hidden_states_have_the_length_of_the_text(build_network, build_batch, case, prompt_layers):
    if prompt_layers == [0] and case.family.first_layer > 0:
        pytest.skip("this family takes no prompt at layer 0")
    network, batch = build_network(case, prompt_layers=prompt_layers), build_batch(case)
    with torch.no_grad():
        states = network(**batch, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(*batch["input_ids"].shape, 32)] * 5


def test_hidden_states_are_those_the_blocks_pass_on(build_network, build_backbone, build_batch, case):
    """Up to the first prompt layer they are the backbone's, beyond it they are not."""
    network, batch = build_network(case, prompt_layers=[2]), build_batch(case)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        states = network(**batch, output_hidden_states=True).hidden_states
        backbone = build_backbone(case)(**batch, output_hidden_states=True).hidden_states
    for layer in range(3):
        assert torch.equal(states[layer][real], backbone[layer][real])
    for layer in (3, 4):
        assert (states[layer][real] - backbone[layer][real]).abs().max() > 1e-3


def test_last_hidden_state_has_the_length_of_the_text(build_network, build_batch, case):
    network, batch = build_network(case, "none"), build_batch(case)
    with torch.no_grad():
        assert network(**batch).last_hidden_state.shape == (*batch["input_ids"].shape, 32)


def test_outputs_as_a_tuple(build_network, build_batch, case):
    network, batch = build_network(case), build_batch(case)
    options = {"output_hidden_states": True, **({"use_cache": False} if case.causal else {})}
    with torch.no_grad():
        expected = network(**batch, **options)
        logits, states = network(**batch, **options, return_dict=False)
    assert torch.equal(logits, expected.logits)
    assert [state.shape for state in states] == [state.shape for state in expected.hidden_states]


def test_attentions_can_be_had(build_network, build_batch, logits_of, case):
    """Their shape is the blocks' own, prompts included; asking for them changes nothing else."""
    if case.attention != "eager":
        pytest.skip("only eager attention returns its weights")
    network, batch = build_network(case), build_batch(case)
    with torch.no_grad():
        outputs = network(**batch, output_attentions=True)
    assert len(outputs.attentions) == 4
    assert torch.equal(outputs.logits[batch["attention_mask"].bool()], logits_of(network, batch))


@pytest.mark.parametrize("auto_class", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
def test_other_heads_take_prompts(build_config, build_batch, randomize, case, auto_class):
    config = case.family.config(**{**case.family.shape, "num_labels": 2})
    try:
        backbone = auto_class.from_config(config, attn_implementation=case.attention)
    except ValueError:
        pytest.skip("the family has no such head")
    network = get_peft_model(backbone, build_config(case, "none"))
    randomize(network)
    batch = build_batch(case)
    with torch.no_grad():
        outputs = network(**batch)
    assert outputs[0].shape[:2] == batch["input_ids"].shape


# bfloat16


def _error(low, reference):
    return ((low.float() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_bfloat16_is_close_to_float32(build_network, build_backbone, build_batch, logits_of, case, prompt_layers):
    """Prompts may cost rounding, but little more than the backbone's own."""
    network, backbone, batch = build_network(case, prompt_layers=prompt_layers), build_backbone(case), build_batch(case)
    exact, exact_backbone = logits_of(network, batch), logits_of(backbone, batch)
    rounded = logits_of(network.to(torch.bfloat16), batch)
    assert rounded.dtype == torch.bfloat16
    assert _error(rounded, exact) < 3 * _error(logits_of(backbone.to(torch.bfloat16), batch), exact_backbone) + 0.01


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_bfloat16_backbone_trains_its_prompts(
    build_backbone, build_config, build_batch, logits_of, train_step, case, side
):
    """PEFT keeps adapters of a half-precision backbone in float32; the states stay in the backbone's type."""
    network = get_peft_model(build_backbone(case).to(torch.bfloat16), build_config(case, prompt_layers="search")).eval()
    batch = build_batch(case, side=side)
    before = logits_of(network, batch)
    assert before.dtype == torch.bfloat16
    assert before.isfinite().all()
    train_step(network, batch)
    assert (logits_of(network, batch) - before).abs().max() > 0


def test_bfloat16_generates_with_cache(build_network, build_batch, causal_case):
    network = build_network(causal_case).to(torch.bfloat16)
    batch = build_batch(causal_case, side="left")
    tokens = network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
    )
    assert tokens.shape == (3, batch["input_ids"].shape[1] + 4)


def test_autocast_runs_forward_and_backward(build_network, build_batch, case):
    network = build_network(case, prompt_layers="search")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = network(**build_batch(case)).logits.float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
