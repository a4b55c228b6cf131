"""Loading a backbone with the head that a task needs, from a hub id, a local folder or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from sptune.errors import InputError
from sptune.extras import require
from sptune.modeling.backbone_spec import CAUSAL_LM, CLASSIFIER, MASKED_LM, BackboneSource, BackboneSpec, auto_class
from sptune.modeling.backbones import find_backbone
from sptune.modeling.mean_pooling import MeanPooledClassifier, MeanPooledConfig
from sptune.modeling.problem_types import SINGLE_LABEL
from sptune.whole_files import expanded

# Names of sequence-classification heads in transformers; PEFT trains and saves them by itself.
HEADS = ("classifier", "score")

DEFAULT_MAX_LENGTH = 512

# Families whose positions start after the padding index.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm", "data2vec-text")

# The number of weights that a message names.
MAX_NAMED = 5

Loaded = TypeVar("Loaded")


def find_source(model: str | None, gguf_file: str | None, revision: str | None, dtype: str) -> BackboneSource:
    """Locate the backbone that the options name; nothing is loaded.

    Raises:
        InputError: no model is named, the folder or GGUF file does not exist, or a revision of local files is named.
    """
    if gguf_file is not None:
        require("gguf", "gguf_file")
    if model is None:
        if gguf_file is None:
            raise InputError("model is missing: name a hub id or a local folder (model=...), or a gguf_file.")
        file = expanded(gguf_file)
        if not file.is_file():
            raise InputError(f"gguf_file={gguf_file!r}: there is no such file; give the path of a GGUF file.")
        _refuse_revision(revision, "gguf_file", gguf_file)
        return BackboneSource(str(file.resolve().parent), file.name, None, dtype)
    folder = expanded(model)
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise InputError(f"model={model!r}: there is no such folder; give a local folder or a hub id.")
        return BackboneSource(model, gguf_file, revision, dtype)
    _refuse_revision(revision, "model", model)
    if gguf_file is not None:
        gguf_file = _name_inside(folder, gguf_file)
    elif not (folder / "config.json").is_file():
        raise InputError(
            f"model={model!r}: the folder has no config.json, so it is not a transformers model; name a folder that "
            "save_pretrained wrote, or a gguf_file in it."
        )
    return BackboneSource(str(folder.resolve()), gguf_file, None, dtype)


def _refuse_revision(revision: str | None, option: str, place: str) -> None:
    if revision is not None:
        raise InputError(
            f"revision={revision!r} is of a model on the hub, and {option}={place!r} is a local one; leave revision "
            "out, or give the model's hub id."
        )


def _name_inside(folder: Path, gguf_file: str) -> str:
    """The name of a GGUF file in a folder, given itself or as the path of this file."""
    name = Path(gguf_file).name
    inside = folder / name
    if not inside.is_file() or (gguf_file != name and not (os.path.exists(gguf_file) and inside.samefile(gguf_file))):
        found = ", ".join(sorted(file.name for file in folder.glob("*.gguf"))) or "none"
        raise InputError(f"gguf_file={gguf_file!r} is not in {folder}; GGUF files there: {found}.")
    return name


def load_config(source: BackboneSource) -> PretrainedConfig:
    """The backbone's configuration.

    Raises:
        InputError: it cannot be loaded.
    """
    return _load("configuration", source, lambda: AutoConfig.from_pretrained(source.model, **source.loading_options()))


def load_tokenizer(source: BackboneSource) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer; without a padding token, its end token is used.

    Raises:
        InputError: it cannot be loaded, or has neither a padding nor an end token.
    """
    options = source.loading_options()
    tokenizer = _load("tokenizer", source, lambda: AutoTokenizer.from_pretrained(source.model, **options))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"The tokenizer of {source.model} has neither a padding nor an end token, so examples cannot be "
                "batched; set its pad_token and save it beside the model."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_backbone(spec: BackboneSpec, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, list[str]]:
    """The frozen backbone with its head.

    Returns:
        The model, and the names of modules that the checkpoint lacks, which a run must train and save.

    Raises:
        InputError: it cannot be loaded, its files lack weights of the backbone itself, or they have no language-model
            head where one is needed.
    """
    source = spec.source
    id2label = dict(enumerate(spec.labels))
    options = {**source.loading_options(), "dtype": getattr(torch, source.dtype)}
    if source.gguf_file and hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if spec.pooling == "mean":
        backbone, _ = _load_weights(AutoModel, source, options)
        model = MeanPooledClassifier.from_backbone(
            _renamed(backbone, source), id2label=id2label, problem_type=spec.problem_type
        )
        return model, ["classifier"]
    if spec.head == CLASSIFIER:
        options |= {
            "num_labels": len(spec.labels),
            "id2label": id2label,
            "label2id": {label: index for index, label in id2label.items()},
            "pad_token_id": tokenizer.pad_token_id,
            "problem_type": spec.problem_type or SINGLE_LABEL,
        }
    model, absent = _load_weights(auto_class(spec.head), source, options)
    if absent and spec.head != CLASSIFIER:
        raise InputError(
            f"{source.model} has no trained language-model head (missing in its files, or of another shape: "
            f"{', '.join(absent)}), which a verbalizer task reads; choose a masked or causal language model, or "
            "task_kind='classifier'."
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return _renamed(model, source), absent


def language_head(config: PretrainedConfig, source: BackboneSource) -> str | None:
    """The language-model head of a checkpoint, "masked_lm" or "causal_lm"; None if its configuration names none."""
    architectures = " ".join(getattr(config, "architectures", None) or [])
    if is_causal(config):
        has_head = source.gguf_file is not None or "LMHead" in architectures or "ForCausalLM" in architectures
        return CAUSAL_LM if has_head and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None
    has_head = "MaskedLM" in architectures or architectures == "BertForPreTraining"
    return MASKED_LM if has_head and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else None


def is_causal(config: PretrainedConfig) -> bool:
    """Whether text attends only backwards in models of this configuration."""
    return text_config(config).model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def text_config(config: PretrainedConfig) -> Any:
    """The configuration of the backbone itself."""
    return config.text_config if isinstance(config, MeanPooledConfig) else config


def check_supported(config: PretrainedConfig, placement: str | None, layers_path: str | None) -> None:
    """Refuse a backbone that cannot take prompts before its weights are loaded.

    Args:
        config: the backbone's.
        placement: of the prompts.
        layers_path: the path of its blocks, if one was given.

    Raises:
        InputError: see `sptune.modeling.backbones.find_backbone`.
    """
    inner = text_config(config)
    if getattr(inner, "is_encoder_decoder", False):
        raise InputError(
            f"{inner.model_type!r} is an encoder-decoder, which a run cannot use; choose an encoder or a decoder, or "
            "attach prompts in Python: get_peft_model(model, SPTConfig(layers_path='...'))."
        )
    if layers_path is not None:
        return  # the path begins at the model with its head, and is checked when that is loaded
    if placement == "prepend":
        _check_family(inner.model_type)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(inner)
    find_backbone(skeleton, placement=placement)


def _check_family(model_type: str) -> None:
    """Refuse a family without prompts in front of the text, in the words of the command line."""
    from sptune.modeling.prepend.families import FAMILIES

    if model_type not in FAMILIES:
        raise InputError(
            f"Models of type {model_type!r} are not in the table of families that take prompts in front of the text "
            f"({', '.join(FAMILIES)}). Leave out placement=prepend; or, if its blocks take hidden_states and "
            "attention_mask as Llama's or BERT's do, name their list: layers_path=model.layers"
        )


def position_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of tokens that the backbone takes."""
    inner = text_config(config)
    limit = getattr(inner, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    if inner.model_type in POSITIONS_AFTER_PADDING:
        limit -= inner.pad_token_id + 1  # its positions start after the padding index
    return min(limit, tokenizer.model_max_length)


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """The longest input in tokens: `wanted`, or as many as the backbone takes, at most 512.

    Raises:
        InputError: `wanted` is more than the backbone takes.
    """
    limit = position_limit(config, tokenizer)
    if wanted is None:
        return min(limit, DEFAULT_MAX_LENGTH)
    if wanted > limit:
        raise InputError(f"max_length={wanted} is more than the {limit} tokens this backbone takes; lower it.")
    return wanted


def _renamed(model: Any, source: BackboneSource) -> PreTrainedModel:
    """The model under the name that adapters store, without the quantizer that unpacked its GGUF weights."""
    model.name_or_path = source.model
    if source.gguf_file and getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model


def _load_weights(auto_class: Any, source: BackboneSource, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """A model, and the names of its heads and poolers that the files lack.

    Transformers initializes weights at random that are missing or of another shape than in the configuration. This is
    right for a head, which is trained. A backbone is frozen and would stay random, so it is refused.
    """
    model, report = _load(
        "model",
        source,
        lambda: auto_class.from_pretrained(
            source.model, output_loading_info=True, ignore_mismatched_sizes=True, **options
        ),
    )
    # An entry is a name on transformers 4, and on 5 begins with one.
    mismatched = (entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"])
    keys = sorted({*report["missing_keys"], *mismatched})
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    pooler = f"{prefix}pooler"
    weights = {key for key in model.state_dict() if key.startswith(prefix)}
    missing = [key for key in keys if key in weights and not key.startswith(f"{pooler}.")]
    if missing:
        shown = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        raise InputError(
            f"The files of {source.model} lack weights of the backbone, or have them in another shape than its "
            f"configuration says; {len(missing)} of {len(weights)} would stay random: {shown}. Check that the "
            "configuration belongs to the weights (number of layers, sizes, vocabulary) and both to this version of "
            "transformers, or name another model."
        )
    return model, sorted({pooler if key.startswith(f"{pooler}.") else key.split(".")[0] for key in keys})


def _load(what: str, source: BackboneSource, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except (OSError, ValueError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        local = Path(source.model).is_dir()
        place = "from this folder" if local else "from the model hub or its local cache"
        remedy = "" if local else (
            " Check the name and the network, set HF_ENDPOINT for a mirror, or give a local folder (--model ./folder)."
        )  # fmt: skip
        if "trust_remote_code" in str(error):
            lines = ["it needs Python code that comes with its files, which sptune does not run"]
            remedy = ". Name a model whose architecture is part of transformers, or load it in Python and use the API."
        raise InputError(
            f"The {what} of {source.model!r} could not be loaded {place}: {lines[0] if lines else type(error).__name__}"
            f"{remedy}"
        ) from error
