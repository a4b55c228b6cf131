"""What differs between model families, in one table, and what is refused before anything is attached.

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
from sptune.forward_context import ThreadState
from sptune.gates import at_least_float32


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        layers: dotted path from the base model to its list of blocks.
        causal: whether text attends only backwards.
        rotary: attribute of the base model that makes rotary position embeddings, None without them.
        relative: attribute of the base model that has `get_rel_pos` (DeBERTa's relative positions), None without it.
        weighted_attention: dotted path from a block to the self-attention whose mask is multiplicative, so that it
            cannot carry a bias on the logits; its probabilities are weighted instead. None where masks are additive.
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

# Wrappers of sptune's own that hold a backbone from the table.
TRANSPARENT_WRAPPERS = ("sptune_mean_pooled",)

# Rotary tables of these kinds are rebuilt from the longest position of a call, which a second call for the prompts
# would disturb.
REFUSED_ROPE_TYPES = ("dynamic", "longrope")

# Known to be wrong under wrapped blocks, whatever path is given: a position bias flows from block to block (T5),
# encoder and decoder both take blocks away at random or attend across (BART and its kin).
REFUSED_FAMILIES = ("t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "m2m_100")


@dataclass(frozen=True)
class Backbone:
    """A supported model, taken apart as far as prompts need it.

    Attributes:
        family: the model type.
        base_model: the module whose forward runs the blocks.
        layers: the blocks, in order.
        layers_name: dotted name of the block list, from the model that was given.
        hidden_size: d.
        num_layers: L.
        causal: whether text attends only backwards.
        rotary: the rotary module, or None.
        relative_positions: builds relative positions for hidden states (batch, length, d), or None.
        weighted_attention: see `Family`.
    """

    family: str
    base_model: nn.Module
    layers: nn.ModuleList
    layers_name: str
    hidden_size: int
    num_layers: int
    causal: bool
    rotary: nn.Module | None
    relative_positions: Callable[[torch.Tensor], torch.Tensor] | None
    weighted_attention: str | None


def find_backbone(model: nn.Module, layers_path: str | None = None) -> Backbone:
    """Find the blocks of a model and check that prompts can be attached to them.

    Args:
        model: a transformers model, with or without a head.
        layers_path: dotted path from `model` to its list of blocks, for a family that the table does not know. Such a
            model is taken to behave as Llama's blocks do if it has rotary embeddings, and as BERT's if not.

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
            f"Models of type {model_type!r} are not supported, with layers_path or without: their blocks pass more "
            f"than hidden states to one another. Supported are {', '.join(FAMILIES)}."
        )
    if layers_path is not None:
        family, base_model, layers, layers_name = _follow_layers_path(model, model_type, layers_path)
    else:
        family, base_model, layers, layers_name = _look_up_family(model, model_type)
    inner_config: Any = base_model.config
    _refuse_unsafe(model, inner_config)
    return Backbone(
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


def check_prompt_at_first_layer(backbone: Backbone, layers: list[int]) -> None:
    """Refuse a prompt at layer 0 of a DeBERTa with a convolution: it runs after that layer at the text's length.

    Raises:
        InputError: layer 0 is among `layers` and the encoder has a convolution.
    """
    if 0 in layers and getattr(getattr(backbone.base_model, "encoder", None), "conv", None) is not None:
        raise InputError(
            f"This {backbone.family} model has a convolution after layer 0 (conv_kernel_size > 0), which cannot run "
            "over a prompt inserted at layer 0. Leave layer 0 out: candidate_layers=list(range(1, "
            f"{backbone.num_layers})) for a search, or prompt_layers without 0."
        )


def check_attention_mask(mask: Any) -> None:
    """Refuse an attention mask whose form inside the blocks cannot be extended by prompts.

    Raises:
        InputError: the mask is not a dense mask of four dimensions.
    """
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor):
        raise InputError(
            f"A block got an attention mask of type {type(mask).__name__} (flex attention), which cannot be extended "
            "by prompts; load the model with attn_implementation='sdpa' or 'eager'."
        )
    if mask.dim() != 4:
        raise InputError(
            f"A block got an attention mask with {mask.dim()} dimensions where 4 are expected; load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )


def check_length(block: nn.Module, length: int) -> None:
    """Refuse more keys than a block's own causal mask covers: eager GPT-2 of transformers 4 cuts it from a buffer.

    Args:
        block: a block of the backbone.
        length: keys, prompts and cached text included.

    Raises:
        InputError: the buffer is too small.
    """
    attention: Any = getattr(block, "attn", None)
    buffers = dict(attention.named_buffers(recurse=False)) if attention is not None else {}
    causal_mask = buffers.get("bias")
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    if causal_mask is not None and implementation == "eager" and length > causal_mask.shape[-1]:
        raise InputError(
            f"Prompts and text have {length} positions, but eager attention of this model covers "
            f"{causal_mask.shape[-1]}; load it with attn_implementation='sdpa', or give shorter texts."
        )


def _look_up_family(model: nn.Module, model_type: str) -> tuple[Family, nn.Module, nn.ModuleList, str]:
    if model_type not in FAMILIES and model_type not in TRANSPARENT_WRAPPERS:
        raise InputError(
            f"Models of type {model_type!r} are not in sptune's table of families ({', '.join(FAMILIES)}). If its "
            "blocks take hidden_states and attention_mask as Llama's or BERT's do, name their list: "
            "SPTConfig(layers_path='model.layers')."
        )
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or module.config.model_type not in FAMILIES:
            continue
        family = FAMILIES[module.config.model_type]
        layers = _follow(module, family.layers)
        if isinstance(layers, nn.ModuleList):
            return family, module, layers, f"{name}.{family.layers}" if name else family.layers
    raise InputError(
        f"No list of blocks was found in {type(model).__name__} (type {model_type!r}); name it: "
        "SPTConfig(layers_path='...')."
    )


def _follow_layers_path(
    model: nn.Module, model_type: str, layers_path: str
) -> tuple[Family, nn.Module, nn.ModuleList, str]:
    layers = _follow(model, layers_path)
    if not isinstance(layers, nn.ModuleList):
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        found = "there is nothing of that name" if layers is None else f"that is a {type(layers).__name__}"
        raise InputError(
            f"layers_path={layers_path!r} does not lead to a list of blocks in {type(model).__name__}: {found}. "
            f"Lists in this model: {', '.join(lists) or 'none'}."
        )
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
    if _is_quantised(model):
        raise InputError(
            "The model is quantised, which has not been tried with prompts; load it without quantization_config."
        )
    if not FAMILIES.get(config.model_type, DECODER).causal and getattr(config, "is_decoder", False):
        raise InputError(
            f"This {config.model_type} model is set up as a decoder (is_decoder=True), which is not supported; load it "
            "with is_decoder=False, or use a causal family."
        )
    rope_type = _rope_type(config)
    if rope_type in REFUSED_ROPE_TYPES:
        raise InputError(
            f"Rotary embeddings of type {rope_type!r} change with the length of the call, which prompts would disturb; "
            "load the model with another rope type (default, linear, yarn, llama3)."
        )


def _is_quantised(model: nn.Module) -> bool:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None and not getattr(model, "is_quantized", False):
        return False
    # Transformers 5 leaves its quantiser on a model whose GGUF weights it has unpacked to plain floating numbers.
    method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", None)
    unpacked = all(tensor.is_floating_point() for tensor in model.parameters())
    return not (method == "gguf" and unpacked)


def _rope_type(config: Any) -> str | None:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return parameters.get("rope_type", parameters.get("type"))


def _relative_positions(base_model: nn.Module, attribute: str | None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if attribute is None:
        return None
    encoder: Any = getattr(base_model, attribute)
    return encoder.get_rel_pos if encoder.relative_attention else None


def _follow(module: nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


class _FloatingMask(ThreadState):
    """The mask on its way from an attention's arguments to its probabilities."""

    weights: torch.Tensor | None = None


class WeightedProbabilities:
    """Weighs attention probabilities by a floating mask, where a family's mask cannot carry a bias on the logits.

    softmax(logits + log w) = w softmax(logits) / sum(w softmax(logits)). The mask holds w at the prompts' columns and
    0 or 1 elsewhere; a boolean mask leaves the attention as it was. The mask travels as an argument of the block, so
    that gradient checkpointing recomputes with the right one.

    Args:
        attention: a self-attention module with an argument `attention_mask` and a `dropout` on its probabilities.
    """

    def __init__(self, attention: nn.Module) -> None:
        self.mask = _FloatingMask()
        dropout: Any = attention.dropout
        self._handles = [
            attention.register_forward_pre_hook(self._catch_mask, with_kwargs=True),
            dropout.register_forward_pre_hook(self._weigh),
        ]

    def remove(self) -> None:
        """Leave the attention as it was found."""
        for handle in self._handles:
            handle.remove()

    def _catch_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]
        self.mask.weights = mask if mask.is_floating_point() else None

    def _weigh(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        weights, self.mask.weights = self.mask.weights, None  # kept, it would hold on to the whole graph
        if weights is None:
            return None
        probabilities = args[0]
        weighted = at_least_float32(probabilities) * weights  # in half precision, small sums have no finite gradient
        total = weighted.sum(-1, keepdim=True)
        # A row that sees nothing is padding. It stays as the backbone has it: zeros would blow up in layer norms.
        blind = total == 0
        weighted = torch.where(blind, probabilities, weighted / total.masked_fill(blind, 1.0))
        return (weighted.to(probabilities.dtype), *args[1:])
