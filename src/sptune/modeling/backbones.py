"""Finding the blocks of a backbone, and what is refused before anything is attached.

Prompts that are added to the tokens need a list of blocks that take hidden states first, which is found in any model.
Prompts in front of the text need to know what differs between model families: one table. A family is supported there
when its row is here and the conformance suite (tests/conformance) passes on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from sptune.errors import InputError
from sptune.modeling.calls import argument_positions
from sptune.modeling.forward_context import ThreadState
from sptune.modeling.gates import at_least_float32


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

# What blocks call the hidden states they take first, and configurations the hidden size.
STATE_NAMES = ("hidden_states", "x", "hidden_state", "inputs", "input", "features", "embeddings")
HIDDEN_SIZE_NAMES = ("hidden_size", "d_model", "n_embd", "dim")

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
        causal: whether text attends only backwards; this and the rest are known for `prepend` only.
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
    causal: bool = False
    rotary: nn.Module | None = None
    relative_positions: Callable[[torch.Tensor], torch.Tensor] | None = None
    weighted_attention: str | None = None


def find_backbone(model: nn.Module, layers_path: str | None = None) -> Backbone:
    """Find the blocks of any model: the list of like blocks that is not part of another list.

    Args:
        model: a model, with or without a head.
        layers_path: dotted path from `model` to its list of blocks, where it cannot be found or there are several.

    Raises:
        InputError: there is no such list, or more than one; the message says what to do.
    """
    _refuse_shared_blocks(model)
    found = _block_lists(model)
    if layers_path is not None:
        layers = _follow(model, layers_path)
        if not isinstance(layers, nn.ModuleList):
            raise _no_list(model, layers_path, layers)
        name = layers_path
    else:
        if not found:
            raise InputError(
                f"No list of blocks was found in {type(model).__name__}; name it: SPTConfig(layers_path='...'). "
                f"Lists in this model: {_lists(model)}."
            )
        name = max(found, key=lambda one: len(found[one]))
        if len(found) > 1:
            # An encoder and a decoder, or a tower for images and one for text: nobody can tell which one is meant.
            listed = ", ".join(f"{one!r} ({len(layers)} blocks)" for one, layers in found.items())
            raise InputError(
                f"{type(model).__name__} has several lists of blocks: {listed}. Name the one to tune: "
                f"SPTConfig(layers_path={name!r})."
            )
        layers = found[name]
    base_model = _owner(model, name)
    first = next(iter(argument_positions(unwrapped(layers[0]).forward)), None)
    if first is None:
        raise InputError(
            f"{type(unwrapped(layers[0])).__name__}.forward names no first argument, which must be the hidden states; "
            "choose another layers_path."
        )
    return Backbone(
        family=getattr(getattr(base_model, "config", None), "model_type", type(base_model).__name__),
        base_model=base_model,
        layers=layers,
        layers_name=name,
        hidden_size=_hidden_size(base_model),
        num_layers=len(layers),
    )


def unwrapped(block: nn.Module) -> nn.Module:
    """A block of the backbone itself, out of what PEFT methods wrap around it."""
    while isinstance(block, BaseTunerLayer):
        block = cast(nn.Module, block.get_base_layer())
    return block


def hooked_device(block: nn.Module) -> torch.device | None:
    """The device to which accelerate's hook moves what a block is given; None if it has no hook.

    In a model that is split over devices, this is not where the states come from; and where weights are offloaded, it
    is not where they are between calls.
    """
    hook: Any = getattr(block, "_hf_hook", None)
    devices = (getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,)))
    return next((torch.device(device) for device in devices if device is not None), None)


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference, as it does on some CPUs: they block gradients.

    Raises:
        InputError: the weights are repacked already.
    """
    layers: list[Any] = [one for one in model.modules() if getattr(one, "support_avx512bf16_for_cpu", False)]
    if any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers):
        raise InputError(
            "bitsandbytes has repacked the 4-bit weights for inference on this CPU, which it does in evaluation mode, "
            "and gradients do not pass through them any more. Load the model again and call train() before its first "
            "forward."
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def _block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of two or more like blocks by name, outermost only."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        within = any(name.startswith(outer + ".") for outer in lists)
        if not isinstance(module, nn.ModuleList) or within or len(module) < 2:
            continue
        # Blocks of a hybrid model are of two or three kinds.
        kinds = {type(unwrapped(block)) for block in module}
        if len(kinds) <= 3 and all(_may_be_block(unwrapped(block)) for block in module):
            lists[name] = module
    return lists


def _may_be_block(block: nn.Module) -> bool:
    """Whether a module is made of others, some with matrices, and takes first what is called hidden states.

    Convolutions before the blocks have no matrices, and projections or embeddings are made of nothing else.
    """
    composed = next(block.children(), None) is not None and any(p.dim() == 2 for p in block.parameters())
    return composed and next(iter(argument_positions(block.forward)), None) in STATE_NAMES


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The innermost transformers model that holds the module of this name; `model` if there is none."""
    parents = [".".join(name.split(".")[:size]) for size in range(name.count(".") + 1)]
    owners = [model.get_submodule(parent) for parent in parents]
    return next((owner for owner in reversed(owners) if isinstance(owner, PreTrainedModel)), model)


def _refuse_shared_blocks(model: nn.Module) -> None:
    """Refuse blocks that run several times a forward: one generator would act in all of them (ALBERT)."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "num_hidden_groups", None) is not None:
            raise InputError(
                f"Models of type {config.model_type!r} run the same block at each of their {config.num_hidden_layers} "
                "layers, so a prompt could not be at one layer alone; choose a backbone with a block for each layer."
            )


def _hidden_size(base_model: nn.Module) -> int:
    config: Any = getattr(base_model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for one in (config, text):
        for name in HIDDEN_SIZE_NAMES:
            if isinstance(getattr(one, name, None), int):
                return int(getattr(one, name))
    raise InputError(f"The hidden size of {type(base_model).__name__} is not known; set config.hidden_size.")


def _lists(model: nn.Module) -> str:
    return ", ".join(name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)) or "none"


def _no_list(model: nn.Module, layers_path: str, found: Any) -> InputError:
    what = "there is nothing of that name" if found is None else f"that is a {type(found).__name__}"
    return InputError(
        f"layers_path={layers_path!r} does not lead to a list of blocks in {type(model).__name__}: {what}. "
        f"Lists in this model: {_lists(model)}."
    )


def frozen_part(model: nn.Module, backbone: Backbone) -> nn.Module:
    """What of a model is not its head: the module in which dropout is left off in training."""
    inner = getattr(model, "base_model", None)
    holds = isinstance(inner, nn.Module) and any(module is backbone.layers for module in inner.modules())
    return cast(nn.Module, inner) if holds else backbone.base_model


def find_prepend_backbone(model: nn.Module, layers_path: str | None = None) -> Backbone:
    """Find the blocks of a model and check that prompts can stand in front of the text there.

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
            f"Models of type {model_type!r} are not in the table of families that take prompts in front of the text "
            f"({', '.join(FAMILIES)}). Use placement='add', which goes with any model; or, if its blocks take "
            "hidden_states and attention_mask as Llama's or BERT's do, name their list: "
            "SPTConfig(placement='prepend', layers_path='model.layers')."
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
        raise _no_list(model, layers_path, layers)
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
            "The model is quantized, which has not been tried with prompts in front of the text; use placement='add', "
            "or load it without quantization_config."
        )
    if not FAMILIES.get(config.model_type, DECODER).causal and getattr(config, "is_decoder", False):
        raise InputError(
            f"This {config.model_type} model is set up as a decoder (is_decoder=True), which is not supported; load it "
            "with is_decoder=False, or use a causal family."
        )
    kind = rope_type(config)
    if kind in REFUSED_ROPE_TYPES:
        raise InputError(
            f"Rotary embeddings of type {kind!r} change with the length of the call, which prompts would disturb; "
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


def rope_type(config: Any) -> str | None:
    """What a configuration calls its rotary embeddings; None without any."""
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
