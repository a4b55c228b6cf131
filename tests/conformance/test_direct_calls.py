"""`module.forward(...)` gives what `module(...)` gives, at every level, whatever ran before or runs meanwhile."""

import copy
import inspect
import pickle

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from peft import get_peft_model

from sptune import MeanPooledClassifier


def _levels(network):
    """The modules from the PEFT model down to the one that runs the blocks."""
    base = network.base_model.backbone.base_model
    levels = [network, network.base_model, network.get_base_model()]
    return levels if base is levels[-1] else [*levels, base]


def _first(output):
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


@pytest.mark.parametrize("placement", ["add", "prepend"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize("head", ["lm", "classifier"])
def test_forward_is_a_call(build_network, build_batch, case, head, prompt_layers, placement):
    network = build_network(case, head, prompt_layers=prompt_layers, placement=placement)
    other = build_batch(case, (4, 2, 8, 3), side="left" if case.causal else "right")
    batch = build_batch(case)
    with torch.no_grad():
        for module in _levels(network):
            expected = _first(module(**batch))
            _first(module.forward(**other))  # another size, and other padding
            assert torch.equal(_first(module.forward(**batch)), expected)


def test_a_classifier_of_sptunes_own_is_called_directly(
    build_backbone, build_config, build_batch, randomize, encoder_case
):
    backbone = MeanPooledClassifier.from_backbone(build_backbone(encoder_case, "none"), num_labels=3)
    network = get_peft_model(backbone, build_config(encoder_case, "classifier"))
    randomize(network)
    batch = build_batch(encoder_case)
    with torch.no_grad():
        for module in _levels(network.eval()):
            assert torch.equal(_first(module.forward(**batch)), _first(module(**batch)))


def test_labels_given_to_forward_hide_targets(build_network, build_batch, some_causal_case):
    network = build_network(some_causal_case)
    batch = build_batch(some_causal_case, (9, 9))
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, 7] = (changed["input_ids"][:, 7] + 1) % 90
    with torch.no_grad():
        for module in _levels(network)[:3]:
            expected = module(**batch, labels=labels).logits
            assert torch.equal(module.forward(**batch, labels=labels).logits, expected)
            assert torch.equal(module.forward(**changed, labels=labels).logits[:, :7], expected[:, :7])


def test_a_block_outside_any_forward_refuses(build_network, build_batch, case):
    network, batch = build_network(case), build_batch(case)
    with torch.no_grad():
        network(**batch)
        block = network.base_model.backbone.layers[1]
        mask = torch.ones(3, 1, 9, 9, dtype=torch.bool)
        with pytest.raises(ValueError, match="outside a forward"):
            block(torch.zeros(3, 9, 32), attention_mask=mask)


def test_a_forward_within_a_forward(build_network, build_batch, case):
    """A hook that asks the same model about another text leaves the forward under way as it was."""
    network, batch = build_network(case), build_batch(case)
    other = build_batch(case, (6, 3))
    with torch.no_grad():
        expected, of_other = network(**batch).logits, network(**other).logits
        inner = []

        def ask(module, args, kwargs):
            if not inner:
                inner.append(None)
                inner[0] = network.get_base_model().forward(**other).logits

        network.base_model.backbone.layers[2].register_forward_pre_hook(ask, with_kwargs=True)
        assert torch.equal(network(**batch).logits, expected)
        assert torch.equal(inner[0], of_other)


def test_generate_keeps_its_signature(build_network, build_backbone, some_causal_case):
    bare, network = build_backbone(some_causal_case), build_network(some_causal_case)
    wrapped = network.get_base_model()
    assert inspect.signature(wrapped.generate) == inspect.signature(bare.generate)
    assert inspect.signature(wrapped.forward) == inspect.signature(bare.forward)


def _unpickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, _unpickled])
def test_a_copy_stands_alone(build_network, build_batch, some_case, copy_of):
    network, batch = build_network(some_case), build_batch(some_case)
    with torch.no_grad():
        expected = network(**batch).logits
        twin = copy_of(network)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(twin.forward(**batch).logits, expected)
        assert torch.equal(twin.get_base_model().forward(**batch).logits, expected)


@pytest.mark.parametrize("placement", ["add", "prepend"])
def test_hooks_of_accelerate_may_be_removed_after_prompts_were_attached(
    build_backbone, build_config, build_batch, randomize, case, placement
):
    model, batch = build_backbone(case, "lm").eval(), build_batch(case)
    for module in (model, model.base_model, *model.base_model.children()):
        add_hook_to_module(module, AlignDevicesHook("cpu"))
    network = get_peft_model(model, build_config(case, "lm", prompt_layers=[1, 3], placement=placement)).eval()
    randomize(network)
    with torch.no_grad():
        expected = network(**batch).logits
        remove_hook_from_submodules(model)
        assert torch.equal(network(**batch).logits, expected)
        bare = network.unload()
        assert not torch.equal(bare(**batch).logits, expected)
