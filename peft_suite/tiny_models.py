"""Tiny random models in folders that bear the hub names of PEFT's tests, so that these names lead to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from transformers import PretrainedConfig, PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
DECODER = {**SHAPE, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "Bert": SHAPE,
    "Roberta": SHAPE,
    "Electra": {**SHAPE, "embedding_size": 32},
    "DebertaV2": {
        **SHAPE,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
    },
    "GPT2": {
        "vocab_size": 200,
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_inner": 64,
        "n_positions": 128,
        "initializer_range": 0.1,
        "bos_token_id": 198,
        "eos_token_id": 199,
        "pad_token_id": 0,
    },
    "Llama": DECODER,
    "Mistral": DECODER,
    "Qwen2": DECODER,
    "Qwen3": DECODER,
}

DECODERS = {
    "GPT2": "peft-internal-testing/tiny-random-GPT2LMHeadModel",
    "Llama": "trl-internal-testing/tiny-random-LlamaForCausalLM",
    "Mistral": "hf-internal-testing/tiny-random-MistralForCausalLM",
    "Qwen2": "local/tiny-random-Qwen2ForCausalLM",
    "Qwen3": "local/tiny-random-Qwen3ForCausalLM",
}
ENCODERS = {
    "Bert": "peft-internal-testing/tiny-random-BertModel",
    "Roberta": "peft-internal-testing/tiny-random-RobertaModel",
    "DebertaV2": "peft-internal-testing/tiny-random-DebertaV2Model",
    "Electra": "local/tiny-random-ElectraModel",
}
CLASSIFIERS = {
    "Bert": "peft-internal-testing/tiny-random-BertForSequenceClassification",
    "Roberta": "peft-internal-testing/tiny-random-RobertaForSequenceClassification",
    "DebertaV2": "local/tiny-random-DebertaV2ForSequenceClassification",
    "Electra": "local/tiny-random-ElectraForSequenceClassification",
    "GPT2": "local/tiny-random-GPT2ForSequenceClassification",
    "Llama": "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2",
    "Qwen2": "local/tiny-random-Qwen2ForSequenceClassification",
}
LORA_ADAPTER = "peft-internal-testing/tiny-opt-lora-revision"


def configuration(family: str) -> PretrainedConfig:
    """The configuration of a tiny model."""
    return getattr(transformers, f"{family}Config")(**SHAPES[family])


def model_class(family: str, head: str) -> type[PreTrainedModel]:
    """The class of transformers for a family with a head: "Model", "ForSequenceClassification" and so on."""
    return getattr(transformers, f"{family}{head}")


def build(folder: Path) -> None:
    """Save every model under `folder`, and the configuration of an adapter that PEFT's tests of configurations read."""
    heads = {"ForCausalLM": DECODERS, "Model": ENCODERS, "ForSequenceClassification": CLASSIFIERS}
    for head, names in heads.items():
        for family, name in names.items():
            torch.manual_seed(0)
            cls = model_class(family, "LMHeadModel" if family == "GPT2" and head == "ForCausalLM" else head)
            cls(configuration(family)).save_pretrained(folder / name)
    LoraConfig(task_type="CAUSAL_LM").save_pretrained(folder / LORA_ADAPTER)
