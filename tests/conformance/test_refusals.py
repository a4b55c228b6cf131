"""What cannot be right is refused, and the message says what to do."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    OPTConfig,
    StaticCache,
    T5Config,
)

from sptune import SPTConfig

SMALL_T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
SMALL_BART = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
SMALL_OPT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}


def _static(**options):
    return SPTConfig(
        **{
            "placement": "prepend",
            "prompt_layers": [1],
            "generator": "static",
            "num_virtual_tokens": 3,
            **options,
        }
    )


@pytest.mark.parametrize("config", [T5Config(**SMALL_T5), BartConfig(**SMALL_BART)], ids=["t5", "bart"])
def test_an_encoder_decoder_is_refused(config):
    backbone = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(ValueError, match=r"(?s)" + config.model_type + ".*layers_path"):
        get_peft_model(backbone, _static())


def test_an_unknown_family_is_refused_with_the_option_that_helps():
    with pytest.raises(ValueError, match=r"(?s)opt.*layers_path"):
        get_peft_model(AutoModelForCausalLM.from_config(OPTConfig(**SMALL_OPT)), _static())


@pytest.mark.parametrize("path", ["model.blocks", "lm_head"])
def test_a_layers_path_that_leads_nowhere_is_refused(build_backbone, llama, path):
    with pytest.raises(ValueError, match=f"(?s)layers_path.*{path}"):
        get_peft_model(build_backbone(llama), _static(layers_path=path))


def test_a_layer_the_backbone_does_not_have_is_refused(build_backbone, case):
    with pytest.raises(ValueError, match=r"7.*4 layers"):
        get_peft_model(build_backbone(case), _static(prompt_layers=[1, 7]))


def test_layerdrop_is_refused():
    backbone = AutoModelForCausalLM.from_config(OPTConfig(**SMALL_OPT, layerdrop=0.1))
    with pytest.raises(ValueError, match=r"(?i)layerdrop"):
        get_peft_model(backbone, _static(layers_path="model.decoder.layers"))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_layers": [0]},
        {"prompt_layers": [0, 2]},
        {"prompt_layers": "first"},
        {"prompt_layers": "all"},
        {"prompt_layers": "search"},
        {"prompt_layers": "search", "candidate_layers": [0, 1]},
    ],
    ids=str,
)
def test_debertas_convolution_takes_no_prompt_at_layer_0(build_backbone, deberta_with_convolution, options):
    with pytest.raises(ValueError, match=r"(?is)conv.*layer 0"):
        get_peft_model(build_backbone(deberta_with_convolution), _static(**options))


@pytest.mark.parametrize("attribute", ["is_quantized", "hf_quantizer"])
def test_quantized_blocks_are_refused(build_backbone, llama, attribute):
    backbone = build_backbone(llama)
    setattr(backbone, attribute, True if attribute == "is_quantized" else object())
    with pytest.raises(ValueError, match=r"(?i)quanti[sz]"):
        get_peft_model(backbone, _static())


def test_flex_attention_is_refused(build_backbone, build_batch, llama):
    backbone = build_backbone(llama, attention="flex_attention")
    with pytest.raises(ValueError, match=r"(?i)flex"):
        get_peft_model(backbone, _static())(**build_batch(llama))


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_packed_sequences_are_refused(build_network, build_batch, causal_case, prompt_layers, masked):
    network = build_network(causal_case, prompt_layers=prompt_layers)
    batch = build_batch(causal_case, (8, 8))
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    if not masked:
        del batch["attention_mask"]
    with pytest.raises(ValueError, match=r"(?i)pack"):
        network(**batch)


def test_packed_sequences_are_refused_in_encoders(build_network, build_batch, bert):
    batch = build_batch(bert, (8, 8))
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]] * 2)
    with pytest.raises(ValueError, match=r"(?i)pack"):
        build_network(bert)(**batch)


def test_a_static_cache_is_refused_in_generate(build_network, build_batch, causal_case):
    network = build_network(causal_case)
    batch = build_batch(causal_case, side="left")
    with pytest.raises(ValueError, match=r"(?i)static"):
        network.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=4,
            cache_implementation="static",
        )


def test_a_static_cache_is_refused_in_a_forward(build_network, build_batch, llama):
    network = build_network(llama)
    cache = StaticCache(config=network.config, max_cache_len=32)
    with pytest.raises(ValueError, match=r"(?i)static"):
        network(**build_batch(llama, (8, 8)), past_key_values=cache, use_cache=True)


@pytest.fixture(params=["all layers", "some layers"])
def sliding(request, build_backbone, randomize, mistral, qwen2):
    """A network whose text may see only the last 8 tokens, in all its layers or in some."""
    if request.param == "all layers":
        backbone = build_backbone(mistral, sliding_window=8)
    else:
        backbone = build_backbone(qwen2, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    network = get_peft_model(backbone, _static(task_type="CAUSAL_LM", generator="appg", prompt_layers=[1, 3]))
    randomize(network)
    return network.eval()


def _generate(network, batch, new_tokens, **options):
    return network.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        **options,
    )


@pytest.mark.parametrize("length", [4, 12])
def test_a_sliding_cache_is_refused_once_the_text_outgrows_its_window(sliding, build_batch, llama, length):
    with pytest.raises(ValueError, match=r"(?i)sliding"):
        _generate(sliding, build_batch(llama, (length, 3), side="left"), 10)


def test_a_sliding_cache_is_right_within_its_window(sliding, build_batch, llama):
    batch = build_batch(llama, (4, 3), side="left")
    assert torch.equal(_generate(sliding, batch, 3), _generate(sliding, batch, 3, use_cache=False))


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(ValueError, match=r"Sequential.*transformers"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), _static())


def test_a_bert_that_decodes_is_refused(build_backbone, bert):
    """It attends causally, which its family's row of the table does not say."""
    with pytest.raises(ValueError, match="decoder"):
        get_peft_model(build_backbone(bert, is_decoder=True), _static())
