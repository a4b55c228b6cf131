"""The model families that take prompts in front of the text, in one table.

A family is supported when its row is here and the conformance suite (tests/conformance) passes on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sptune.errors import InputError
from sptune.modeling.backbones import REFUSED_ROPE_TYPES, Backbone, follow, list_at, rope_type


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        layers: dotted path from the base model to its list of blocks.
        causal: whether text attends only backwards.
        rotary: attribute of the base model that computes rotary position embeddings, or None.
        relative: attribute of the base model with `get_rel_pos`, DeBERTa's relative positions, or None.
        weighted_attention: dotted path from a block to its self-attention, if its mask is multiplicative and cannot
            carry a bias on the logits: its probabilities are weighted instead. None if masks are additive.
    """

    layers: str
    causal: bool
    rotary: str | None = None
    relative: str | None = None
    weighted_attention: str | None = None


ENCODER = Family(layers="encoder.layer", causal=False)
DEBERTA = Family(layers="encoder.layer", causal=False, relative="encoder", weighted_attention="attention.self")
DECODER = Family(layers="layers", causal=True, rotary="rotary_emb")

FAMILIES: dict[str, Family] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "electra": ENCODER,
    "deberta-v2": DEBERTA,
    "gpt2": Family(layers="h", causal=True),
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
}

# Models of sptune that hold a backbone from the table.
TRANSPARENT_WRAPPERS = ("sptune_mean_pooled",)

# These give wrong results with prepended prompts, with any layers_path: T5 passes a position bias from block to block;
# BART and its relatives drop blocks at random, and their decoders attend to the encoder.
REFUSED_FAMILIES = ("t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100")


@dataclass(frozen=True)
class PrependBackbone(Backbone):
    """The blocks of a supported model, with the properties of its family.

    Attributes:
        causal: whether text attends only backwards.
        rotary: the module that computes rotary position embeddings, or None.
        relative_positions: computes relative positions for hidden states (batch, length, d), or None.
    """

    causal: bool = False
    rotary: nn.Module | None = None
    relative_positions: Callable[[torch.Tensor], torch.Tensor] | None = None

    def check_layers(self, layers: list[int]) -> None:
        """Refuse a prompt at layer 0 of a DeBERTa with a convolution, which runs after that layer on the text alone.

        Raises:
            InputError: layer 0 is among `layers` and the encoder has a convolution.
        """
        if 0 in layers and getattr(getattr(self.base_model, "encoder", None), "conv", None) is not None:
            raise InputError(
                f"This {self.family} model has a convolution after layer 0 (conv_kernel_size > 0), which cannot run "
                "over a prompt inserted at layer 0. Leave layer 0 out: candidate_layers=list(range(1, "
                f"{self.num_layers})) for a search, or prompt_layers without 0."
            )


def find_prepend_backbone(model: nn.Module, layers_path: str | None = None) -> PrependBackbone:
    """Find the blocks of a model and check that it can have prompts in front of the text.

    Args:
        model: a transformers model, with or without a head.
        layers_path: dotted path from `model` to its list of blocks, for a family that is not in the table. Such a
            model is treated like Llama if it has rotary embeddings, and otherwise like BERT or GPT-2.

    Raises:
        InputError: the model cannot take prompts; the message says why and what to do.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if config is None or model_type is None:
        raise InputError(
            f"{type(model).__name__} is not a transformers model (it has no config.model_type); pass one made by an "
            "Auto class or by from_pretrained."
        )
    if model_type in REFUSED_FAMILIES:
        raise InputError(
            f"Models of type {model_type!r} take no prompts in front of the text, with layers_path or without: their "
            f"blocks pass more than hidden states to one another. Use placement='add', which goes with any model, or "
            f"one of {', '.join(FAMILIES)}."
        )
    if layers_path is not None:
        family, base_model, layers, layers_name = _follow_layers_path(model, model_type, layers_path)
    else:
        family, base_model, layers, layers_name = _look_up_family(model, model_type)
    inner_config: Any = base_model.config
    _refuse_unsafe(model, inner_config)
    return PrependBackbone(
        family=inner_config.model_type,
        base_model=base_model,
        layers=layers,
        layers_name=layers_name,
        hidden_size=inner_config.hidden_size,
        num_layers=len(layers),
        causal=family.causal,
        rotary=getattr(base_model, family.rotary) if family.rotary else None,
        relative_positions=_relative_positions(base_model, family.relative),
        weighted_attention=family.weighted_attention,
    )


def _look_up_family(model: nn.Module, model_type: str) -> tuple[Family, nn.Module, nn.ModuleList, str]:
    if model_type not in FAMILIES and model_type not in TRANSPARENT_WRAPPERS:
        raise InputError(
            f"Models of type {model_type!r} are not in the table of families that take prompts in front of the text "
            f"({', '.join(FAMILIES)}). Use placement='add', which goes with any model; or, if its blocks take "
            "hidden_states and attention_mask as Llama's or BERT's do, name their list: "
            "SPTConfig(placement='prepend', layers_path='model.layers')."
        )
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or module.config.model_type not in FAMILIES:
            continue
        family = FAMILIES[module.config.model_type]
        layers = follow(module, family.layers)
        if isinstance(layers, nn.ModuleList):
            return family, module, layers, f"{name}.{family.layers}" if name else family.layers
    raise InputError(
        f"No list of blocks was found in {type(model).__name__} (type {model_type!r}); name it: "
        "SPTConfig(layers_path='...')."
    )


def _follow_layers_path(
    model: nn.Module, model_type: str, layers_path: str
) -> tuple[Family, nn.Module, nn.ModuleList, str]:
    layers = list_at(model, layers_path)
    base_model, relative_path = model, layers_path
    for name, module in model.named_modules():
        if name and layers_path.startswith(name + ".") and isinstance(module, PreTrainedModel):
            base_model, relative_path = module, layers_path[len(name) + 1 :]
    if model_type in FAMILIES:
        family = FAMILIES[model_type]
    elif hasattr(base_model, DECODER.rotary or ""):
        family = DECODER
    else:
        causal = any(getattr(module, "is_causal", False) for module in layers[0].modules())
        family = Family(layers=relative_path, causal=causal)
    return family, base_model, layers, layers_path


def _refuse_unsafe(model: nn.Module, config: Any) -> None:
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in (None, "eager", "sdpa"):
        raise InputError(
            f"attn_implementation={implementation!r} is not supported, prompts need masks they can extend; load the "
            "model with attn_implementation='sdpa' or 'eager'."
        )
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            raise InputError(
                f"{name}={getattr(config, name)} drops whole layers at random, and with them the prompts; load the "
                f"model with {name}=0."
            )
    if _is_quantized(model):
        raise InputError(
            "The model is quantized, which was not tested with prompts in front of the text; use placement='add', "
            "or load it without quantization_config."
        )
    if not FAMILIES.get(config.model_type, DECODER).causal and getattr(config, "is_decoder", False):
        raise InputError(
            f"This {config.model_type} model is set up as a decoder (is_decoder=True), which is not supported; load it "
            "with is_decoder=False, or use a causal family."
        )
    rotary = rope_type(config)
    if rotary in REFUSED_ROPE_TYPES:
        raise InputError(
            f"Rotary embeddings of type {rotary!r} change with the length of the call, which prompts would disturb; "
            "load the model with another rope type (default, linear, yarn, llama3)."
        )


def _is_quantized(model: nn.Module) -> bool:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None and not getattr(model, "is_quantized", False):
        return False
    # Transformers 5 keeps its quantizer on a model whose GGUF weights it has unpacked to plain floating-point numbers.
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    unpacked = all(tensor.is_floating_point() for tensor in model.parameters())
    return not (method == "gguf" and unpacked)


def _relative_positions(base_model: nn.Module, attribute: str | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if attribute is None:
        return None
    encoder: Any = getattr(base_model, attribute)
    return encoder.get_rel_pos if encoder.relative_attention else None
