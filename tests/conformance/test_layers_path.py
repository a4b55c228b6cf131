"""Families the table does not know: blocks that behave like Llama's work once their path is given."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Phi3Config,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from assertions import assert_same
from sptune import SPTConfig, discretize


class RenamedConfig(LlamaConfig):
    model_type = "renamed"


class NamelessLayer(LlamaDecoderLayer):
    """Takes its cache by any name, as if transformers had given it one that nobody knows yet."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)


class MisnamedLayer(LlamaDecoderLayer):
    """Takes its cache by one known name and is given it by another, as after a renaming that both names survive."""

    def forward(self, hidden_states, attention_mask=None, layer_past=None, **kwargs):
        assert layer_past is None
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)


class RenamedForCausalLM(LlamaForCausalLM):
    config_class = RenamedConfig


def _renamed(shape, layer_class):
    backbone = RenamedForCausalLM(RenamedConfig(**shape)).eval()
    for layer in backbone.model.layers:
        layer.__class__ = layer_class
    return backbone


def _backbone(name, shape):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name in ("renamed", "misnamed"):
            return _renamed(shape, NamelessLayer if name == "renamed" else MisnamedLayer)
        if name == "gpt_neox":  # its blocks call the cache layer_past
            shape = {key: value for key, value in shape.items() if key != "num_key_value_heads"}
        config = {"olmo2": Olmo2Config, "phi3": Phi3Config, "gpt_neox": GPTNeoXConfig}[name](**shape)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(params=["renamed", "misnamed", "olmo2", "phi3", "gpt_neox"])
def name(request):
    return request.param


@pytest.fixture
def backbone(name, decoder_shape):
    """A second copy of the backbone that `build` prompts."""
    return _backbone(name, decoder_shape)


@pytest.fixture
def build(randomize, name, decoder_shape):
    def network(**options):
        options = {
            "placement": "prepend",
            "prompt_layers": [1, 3],
            "num_virtual_tokens": 3,
            "bottleneck_dim": 8,
            **options,
        }
        path = "gpt_neox.layers" if name == "gpt_neox" else "model.layers"
        config = SPTConfig(task_type="CAUSAL_LM", layers_path=path, **options)
        network = get_peft_model(_backbone(name, decoder_shape), config)
        randomize(network)
        return network.eval()

    return network


def test_without_the_path_a_renamed_family_is_refused(decoder_shape):
    with pytest.raises(ValueError, match=r"(?s)renamed.*layers_path"):
        get_peft_model(_backbone("renamed", decoder_shape), SPTConfig(placement="prepend"))


def test_gates_relax_exactly(build, backbone, build_batch, logits_of, llama):
    network, batch = build(prompt_layers="search", mixing_rate=0.5), build_batch(llama, side="left")
    network.base_model.set_gate_values([0.0] * 4)
    assert_same(logits_of(network, batch), logits_of(backbone, batch))
    network.base_model.set_gate_values([0.0, 1.0, 0.0, 1.0])
    searched = logits_of(network, batch)
    assert_same(searched, logits_of(discretize(copy.deepcopy(network), [1, 3], warm_start=True).eval(), batch))


def test_padding_does_not_matter(build, build_batch, logits_of, llama):
    network = build()
    logits = logits_of(network, build_batch(llama, side="right", extra=4))
    assert_same(logits_of(network, build_batch(llama, side="left")), logits)


def test_cached_is_uncached(build, build_batch, llama):
    network, batch = build(), build_batch(llama, side="left")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        network.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options),
        network.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **options
        ),
    )


def test_saved_and_loaded_gives_the_same_logits(build, backbone, build_batch, logits_of, llama, tmp_path):
    network, batch = build(), build_batch(llama)
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(backbone, tmp_path)
    assert torch.equal(logits_of(loaded, batch), logits_of(network, batch))
