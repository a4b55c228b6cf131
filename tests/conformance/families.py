"""Tiny random models of many families, for prompts that are added to the tokens, which need no table of families."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS = 100, 32, 4

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_SEQ2SEQ = {
    "vocab_size": VOCAB_SIZE,
    "d_model": HIDDEN_SIZE,
    "encoder_layers": NUM_LAYERS,
    "decoder_layers": NUM_LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.15,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_T5 = {
    "vocab_size": VOCAB_SIZE,
    "d_model": HIDDEN_SIZE,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": NUM_LAYERS,
    "num_decoder_layers": NUM_LAYERS,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "initializer_factor": 1.0,
    "decoder_start_token_id": 0,
}

TEXT, LANGUAGE, SEQ2SEQ, IMAGE, SOUND = "text", "language", "seq2seq", "image", "sound"


@dataclass(frozen=True)
class Family:
    """A family: its tiny configuration, and what its models take.

    Attributes:
        name: of the case.
        model_type: transformers' name.
        shape: options of the configuration.
        takes: what kind of model it is.
        layers_path: which of several lists of blocks.
        pads_left: whether texts may be padded on the left without position ids.
    """

    name: str
    model_type: str
    shape: dict[str, Any] = field(default_factory=dict)
    takes: str = TEXT
    layers_path: str | None = None
    pads_left: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def causal(self) -> bool:
        return self.takes == LANGUAGE

    def build(self, **overrides: Any) -> PreTrainedModel:
        """A model, with the same random weights at every call."""
        config = AutoConfig.for_model(self.model_type, **{**self.shape, **overrides})
        classes: dict[str, Any] = {
            TEXT: AutoModelForMaskedLM,
            LANGUAGE: AutoModelForCausalLM,
            SEQ2SEQ: AutoModelForSeq2SeqLM,
            IMAGE: AutoModel,
            SOUND: AutoModel,
        }
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = classes[self.takes].from_config(config)
            if self.takes == SOUND:
                model = model.encoder
        return model.eval()

    def batch(self, lengths: tuple[int, ...] = (9, 5, 7), side: str = "right", extra: int = 0) -> dict[str, Tensor]:
        """Inputs: texts padded to the longest plus `extra`, images or sounds; the same at every call."""
        noise = torch.Generator().manual_seed(3)
        if self.takes == IMAGE:
            return {"pixel_values": torch.randn(len(lengths), 3, 16, 16, generator=noise)}
        if self.takes == SOUND:
            return {"input_features": torch.randn(len(lengths), 8, 32, generator=noise)}
        width = max(lengths) + extra
        input_ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width).long()
        for row, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(width - length, width)
            words = torch.randint(5, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(10 + row))
            input_ids[row, place], mask[row, place] = words, 1
        batch = {"input_ids": input_ids, "attention_mask": mask}
        if self.takes == SEQ2SEQ:
            batch["decoder_input_ids"] = torch.randint(5, VOCAB_SIZE, (len(lengths), 4), generator=noise)
        return batch


def _image(**more: Any) -> dict[str, Any]:
    return {**_SIZES, "image_size": 16, "patch_size": 4, **more}


FAMILIES = (
    Family("bert", "bert", _SIZES),
    Family("roberta", "roberta", {**_SIZES, "max_position_embeddings": 66}),
    Family("xlm-roberta", "xlm-roberta", {**_SIZES, "max_position_embeddings": 66}),
    Family("electra", "electra", {**_SIZES, "embedding_size": 16}),
    Family(
        "deberta-v3",
        "deberta-v2",
        {
            **_SIZES,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": "c2p|p2c",
            "type_vocab_size": 0,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    Family("distilbert", "distilbert", {
        "vocab_size": VOCAB_SIZE, "dim": HIDDEN_SIZE, "hidden_dim": 48, "n_layers": NUM_LAYERS, "n_heads": 4,
        "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.15,
    }),
    Family("mpnet", "mpnet", {**_SIZES, "max_position_embeddings": 66, "pad_token_id": 1}),
    Family("modernbert", "modernbert", {
        **_SIZES, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2,
        "initializer_cutoff_factor": 2.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "attention_dropout": 0.0,
    }),
    Family("gpt2", "gpt2", {
        "vocab_size": VOCAB_SIZE, "n_embd": HIDDEN_SIZE, "n_layer": NUM_LAYERS, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.15, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }, LANGUAGE),
    Family("llama", "llama", _GROUPED, LANGUAGE, pads_left=True),
    Family("mistral", "mistral", {**_GROUPED, "sliding_window": 6}, LANGUAGE, pads_left=True),
    Family("qwen2", "qwen2", _GROUPED, LANGUAGE, pads_left=True),
    Family("qwen3", "qwen3", {**_GROUPED, "head_dim": 8}, LANGUAGE, pads_left=True),
    Family("gpt-neox", "gpt_neox", {**_SIZES, "hidden_dropout": 0.0, "attention_dropout": 0.0}, LANGUAGE,
           pads_left=True),
    Family("opt", "opt", {**_SIZES, "ffn_dim": 48, "dropout": 0.0, "word_embed_proj_dim": HIDDEN_SIZE,
                          "init_std": 0.15}, LANGUAGE, pads_left=True),
    Family("bloom", "bloom", {**_SIZES, "n_layer": NUM_LAYERS, "n_head": 4, "hidden_dropout": 0.0,
                              "attention_dropout": 0.0}, LANGUAGE, pads_left=True),
    Family("falcon", "falcon", {**_SIZES, "hidden_dropout": 0.0, "attention_dropout": 0.0}, LANGUAGE, pads_left=True),
    Family("phi3", "phi3", {**_GROUPED, "resid_pdrop": 0.0, "embd_pdrop": 0.0}, LANGUAGE, pads_left=True),
    Family("gemma2", "gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 6}, LANGUAGE, pads_left=True),
    Family("gemma3", "gemma3_text", {**_GROUPED, "head_dim": 8, "sliding_window": 6}, LANGUAGE, pads_left=True),
    Family("stablelm", "stablelm", {**_GROUPED, "hidden_dropout": 0.0, "attention_dropout": 0.0}, LANGUAGE,
           pads_left=True),
    Family("olmo2", "olmo2", _GROUPED, LANGUAGE, pads_left=True),
    Family("mixtral", "mixtral", {**_GROUPED, "num_local_experts": 8, "num_experts_per_tok": 2}, LANGUAGE,
           pads_left=True),
    Family("t5-encoder", "t5", _T5, SEQ2SEQ, "encoder.block", pads_left=True),
    Family("t5-decoder", "t5", _T5, SEQ2SEQ, "decoder.block", pads_left=True),
    Family("bart-encoder", "bart", _SEQ2SEQ, SEQ2SEQ, "model.encoder.layers"),
    Family("bart-decoder", "bart", _SEQ2SEQ, SEQ2SEQ, "model.decoder.layers"),
    Family("vit", "vit", _image(), IMAGE),
    Family("dinov2", "dinov2", _image(mlp_ratio=2), IMAGE),
    Family("whisper-encoder", "whisper", {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16,
                                          "max_target_positions": 16}, SOUND),
)  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
