"""Attached prompts keep no state between forwards, leave other adapters alone, and load only what they need."""

import copy
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DynamicCache, TrainingArguments

from sptune import SPTTrainer, discretize


def _tokens():
    return torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def test_a_model_that_holds_another_adapter_is_refused(build_backbone, build_config, bert, tmp_path):
    get_peft_model(build_backbone(bert), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    backbone = build_backbone(bert)
    backbone.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="another PEFT adapter"):
        get_peft_model(backbone, build_config(bert))


def test_attaching_again_replaces_the_adapter_of_that_name(build_backbone, build_config, bert):
    backbone = build_backbone(bert)
    get_peft_model(backbone, build_config(bert, prompt_layers="search"))
    with pytest.warns(UserWarning, match="PEFT"):
        network = get_peft_model(backbone, build_config(bert, prompt_layers=[2]))
    assert list(network.base_model.generator_parameters()) == [2]
    fresh = get_peft_model(build_backbone(bert), build_config(bert, prompt_layers=[2]))
    assert network.get_nb_trainable_parameters()[0] == fresh.get_nb_trainable_parameters()[0]


def test_a_loaded_search_network_becomes_a_trainable_final_network(build_network, build_backbone, bert, tmp_path):
    build_network(bert, prompt_layers="search").save_pretrained(tmp_path)
    model = discretize(PeftModel.from_pretrained(build_backbone(bert), tmp_path), [1, 2])
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_disabled_adapter_refuses_a_cache_with_prompts(build_network, some_causal_case):
    network, cache, tokens = build_network(some_causal_case), DynamicCache(), _tokens()
    with torch.no_grad():
        network(input_ids=tokens[:, :5], past_key_values=cache)
        with network.disable_adapter(), pytest.raises(ValueError, match="not active"):
            network(input_ids=tokens[:, 5:6], past_key_values=cache)


def test_nothing_of_an_interrupted_forward_remains(build_network, some_causal_case):
    network, tokens = build_network(some_causal_case), _tokens()

    def interrupt(module, args):
        raise KeyboardInterrupt

    with torch.no_grad():
        expected = network(input_ids=tokens).logits
        handle = network.base_model._attachment().backbone.layers[3].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            network(input_ids=tokens, source_mask=torch.zeros_like(tokens))
        handle.remove()
        assert torch.equal(network(input_ids=tokens).logits, expected)


def test_inner_gates_give_way_to_the_outer_ones(build_network, bert, build_batch):
    network, batch = build_network(bert, prompt_layers="search"), build_batch(bert)
    masks = torch.zeros(len(batch["input_ids"]), 4)
    with torch.no_grad(), network.base_model.gating(masks):
        expected = network(**batch).logits
        with network.base_model.gating(torch.ones_like(masks)):
            pass
        assert torch.equal(network(**batch).logits, expected)


def test_hidden_states_have_the_texts_length_in_tuples_too(build_network, build_batch, case):
    network, batch = build_network(case), build_batch(case)
    with torch.no_grad():
        outputs = network(**batch, output_hidden_states=True, return_dict=False)
        expected = network(**batch, output_hidden_states=True).hidden_states
    states = next(part for part in outputs if isinstance(part, tuple) and len(part) == len(expected))
    assert all(torch.equal(state, other) for state, other in zip(states, expected, strict=True))


def test_a_network_can_be_copied_after_a_forward(build_network, build_batch, case):
    network, batch = build_network(case, prompt_layers="search"), build_batch(case)
    logits = network(**batch).logits
    assert torch.equal(copy.deepcopy(network)(**batch).logits, logits)


def test_a_batch_without_any_label_weighs_nothing(build_network, some_causal_case, tmp_path):
    network = build_network(some_causal_case)
    trainer = SPTTrainer(network, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    tokens = _tokens()
    inputs = {"input_ids": tokens, "labels": torch.full_like(tokens, -100)}
    assert trainer.compute_loss(network, inputs, num_items_in_batch=10) == 0


def test_added_prompts_load_nothing_of_prepended_ones():
    """In a fresh process, since other tests have loaded both."""
    program = """
import sys
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel
from sptune import SPTConfig
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
network = get_peft_model(BertModel(config), SPTConfig(prompt_layers="search"))
network(input_ids=torch.ones(1, 3, dtype=torch.long)).last_hidden_state.sum().backward()
print(sorted(name for name in sys.modules if name.startswith("sptune.modeling.prepend")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]
