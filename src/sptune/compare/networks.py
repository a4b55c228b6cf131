"""Attaches a method (prompts, LoRA, adapters, ...) to a loaded backbone: what is trained, and callbacks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import constants
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from sptune.compare.methods import ADAPTERS, PEFT, PROMPTS, WEIGHTS, Method
from sptune.config import default_candidates
from sptune.errors import InputError
from sptune.modeling.backbones import find_backbone
from sptune.modeling.calls import CACHE_NAMES, argument_positions
from sptune.modeling.loading import position_limit, text_config
from sptune.modeling.mean_pooling import MeanPooledClassifier
from sptune.runs import stages
from sptune.runs.job import SPLITS, Job
from sptune.runs.output_folder import weight_bytes
from sptune.search import SearchConfig
from sptune.search.layer_selection import evenly_spaced, layers_to_find

# AdaLoRA's share of steps before the first and after the last change of ranks, as in its paper's GLUE runs.
ADALORA_FIRST, ADALORA_LAST = 0.1, 0.3


@dataclass
class Network:
    """A backbone with what a method trains.

    Attributes:
        module: what is trained and evaluated.
        prompt_layers: where prompts stand, of methods that have such.
        from_layer: the lowest layer that is changed, of methods that leave lower ones out.
        callbacks: what the method does at each step.
    """

    module: nn.Module
    prompt_layers: list[int] | None = None
    from_layer: int | None = None
    callbacks: list[TrainerCallback] = field(default_factory=list)


def attach(method: Method, job: Job) -> Network:
    """Attach a method to a job's backbone; prompts that look for their layers search for them here.

    Raises:
        InputError: the method does not know this backbone, or has no such setting.
    """
    attachers: dict[str, Callable[[Mapping[str, Any], Job], Network]] = {
        PROMPTS: _prompts,
        PEFT: _peft,
        ADAPTERS: _adapters,
        WEIGHTS: _weights,
    }
    return attachers[method.kind](method.settings, job)


def trained_parameters(network: nn.Module, job: Job) -> dict[str, int]:
    """How many numbers are trained: `trainable` in all, `added` without the head."""
    trained = {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}
    added = sum(size for name, size in trained.items() if not job.head_modules & set(name.split(".")))
    return {"trainable": sum(trained.values()), "added": added}


def saved_bytes(network: nn.Module, folder: Path) -> int:
    """Size of the file that holds what was trained, as the method's own library saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, peft.PeftModel):
        network.save_pretrained(str(folder))
        return weight_bytes(folder)
    trained = {name: value.detach().contiguous() for name, value in network.named_parameters() if value.requires_grad}
    file = folder / "trained.safetensors"
    save_file(trained, str(file))
    return file.stat().st_size


def _prompts(settings: Mapping[str, Any], job: Job) -> Network:
    """Prompts of sptune; the job's options hold the settings."""
    result, network = stages.search_layers(job) if job.plan.options.prompts.searching else (None, None)
    final = stages.final_network(job, result, network)
    tuner: Any = final.base_model
    return Network(final, list(tuner.generator_layers))


def _peft(settings: Mapping[str, Any], job: Job) -> Network:
    given = dict(settings)
    kind = peft.PeftType(given.pop("peft_type"))
    from_layer = given.pop("from_layer", None)
    if from_layer is not None:
        from_layer = lowest_layer(from_layer, _inner_layers(job))
        given["layers_to_transform"] = list(range(from_layer, _inner_layers(job)))
    config_class: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    if isinstance(job.backbone, MeanPooledClassifier):
        given = {**_peft_defaults(kind, job.backbone.config.text_config), **given}
    if kind == peft.PeftType.LN_TUNING and text_config(job.backbone.config).model_type not in _peft_mapping(
        kind, "TARGET_MODULES"
    ):
        given = {"target_modules": _norms(job.backbone), **given}  # PEFT knows those of decoders only
    callbacks: list[TrainerCallback] = []
    if kind == peft.PeftType.ADALORA:
        steps = job.plan.max_steps
        last = max(1, int(ADALORA_LAST * steps))  # PEFT never fixes the ranks without a last part
        schedule = {"tinit": int(ADALORA_FIRST * steps), "tfinal": last, "total_step": steps}
        given = {**schedule, **given}
        callbacks.append(AdaLoraSteps())
    try:
        config = config_class(
            # PEFT has no name for masked language models; this one only says that no head is added.
            task_type=job.peft_task_type or "FEATURE_EXTRACTION",
            modules_to_save=job.untrained_modules or None,
            **given,
        )
        if config.is_prompt_learning:
            _check_room(job, config.num_virtual_tokens)
        if kind == peft.PeftType.PREFIX_TUNING:
            _check_prefix(job)
        set_seed(job.plan.options.seed)
        network = peft.get_peft_model(job.backbone, config)
        if from_layer is not None:
            _check_layers(network, from_layer, job)
        return Network(network, from_layer=from_layer, callbacks=callbacks)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"PEFT refuses {kind.value} on {job.plan.spec.source.model}: {error}") from error


def lowest_layer(from_layer: int | str, num_layers: int) -> int:
    """The layer from which on a method changes a backbone.

    Args:
        from_layer: the layer, or "spaced" for the lowest of the prompt layers that sptune takes without a search.
        num_layers: of the backbone.

    Raises:
        InputError: the backbone has no such layer.
    """
    if isinstance(from_layer, str):
        candidates = default_candidates(num_layers, "add")
        return evenly_spaced(candidates, layers_to_find(SearchConfig(), 0, len(candidates), "add"))[0]
    if from_layer >= num_layers:
        raise InputError(f"from_layer={from_layer} is not there; this backbone has layers 0 to {num_layers - 1}.")
    return from_layer


def _check_prefix(job: Job) -> None:
    """Refuse prefix tuning where its keys and values would not arrive."""
    if job.plan.options.gradient_checkpointing:
        raise InputError(
            "Prefix tuning does not go with gradient checkpointing, which drops the keys and values that it trains; "
            "take gradient_checkpointing out of the study."
        )
    backbone: Any = job.backbone
    inner = backbone.backbone if isinstance(backbone, MeanPooledClassifier) else backbone.base_model
    masked_head = () if job.peft_task_type else (backbone,)
    for module in (inner, *masked_head):
        named = any(name in argument_positions(module.forward) for name in CACHE_NAMES)
        if not named and (module is inner or not _takes_any_name(module.forward)):
            otherwise = "" if module is inner else ", or task_kind: classifier"
            raise InputError(
                f"{type(module).__name__} takes no keys and values of what stands before the text, which prefix tuning "
                f"trains; use another method or another backbone{otherwise}."
            )
    forwards = (backbone.forward, backbone.base_model.forward)
    if job.peft_task_type == "SEQ_CLS" and not any("past_key_values" in argument_positions(one) for one in forwards):
        raise InputError(
            f"PEFT {peft.__version__} looks for past_key_values in what {type(job.backbone).__name__} takes, which "
            "transformers has renamed since 5.24 (or the backbone never took it); give the study head_pooling: mean, "
            "or install transformers below 5.24."
        )


def _takes_any_name(function: Any) -> bool:
    return any(one.kind == one.VAR_KEYWORD for one in inspect.signature(function).parameters.values())


def _check_room(job: Job, tokens: int) -> None:
    """Refuse texts after which PEFT's prompts, which take positions of their own, would run off the backbone's."""
    longest = max(max(job.encoded[name]["length"]) for name in SPLITS)
    limit = position_limit(job.backbone.config, job.plan.tokenizer)
    if longest + tokens > limit:
        raise InputError(
            f"This method puts {tokens} positions before the text, the longest text has {longest} tokens, and the "
            f"backbone takes {limit}; give the study a max_length of at most {limit - tokens}."
        )


def _peft_defaults(kind: peft.PeftType, inner: Any) -> dict[str, Any]:
    """What PEFT reads from the configuration of a backbone that it knows, for one that is wrapped in a classifier."""
    if getattr(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind], "num_virtual_tokens", "") is None:
        return {
            "num_layers": inner.num_hidden_layers,
            "token_dim": inner.hidden_size,
            "num_attention_heads": inner.num_attention_heads,
        }
    found = {}
    for name, part in (("target_modules", "TARGET_MODULES"), ("feedforward_modules", "FEEDFORWARD_MODULES")):
        mapping = _peft_mapping(kind, part)
        if inner.model_type in mapping:
            found[name] = mapping[inner.model_type]
    return found


def _peft_mapping(kind: peft.PeftType, part: str) -> dict[str, Any]:
    """PEFT's table of the modules that a method changes, by model type."""
    name = kind.value.replace("_", "")  # LN_TUNING is LNTUNING there
    return getattr(constants, f"TRANSFORMERS_MODELS_TO_{name}_{part}_MAPPING", {})


def _norms(backbone: nn.Module) -> list[str]:
    """The names of the normalization layers of a backbone, without those of its head."""
    inner: Any = backbone.backbone if isinstance(backbone, MeanPooledClassifier) else backbone.base_model
    inside = {id(module) for module in inner.modules()}
    return [
        name
        for name, module in backbone.named_modules()
        if id(module) in inside and "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())
    ]


def _check_layers(network: nn.Module, from_layer: int, job: Job) -> None:
    """Refuse a network in which not the layers that were asked for are changed.

    Raises:
        InputError: which are.
    """
    layers = find_backbone(job.backbone, job.plan.options.prompts.layers_path).layers
    wanted = list(range(from_layer, len(layers)))
    changed = [index for index, one in enumerate(layers) if any(p.requires_grad for p in one.parameters())]
    if changed != wanted:
        raise InputError(
            f"from_layer={from_layer} asks for changes in layers {wanted}, but PEFT made them in {changed}; name the "
            "list of blocks with layers_pattern, and check target_modules."
        )


class AdaLoraSteps(TrainerCallback):
    """What AdaLoRA does around each step: its regulariser's gradient before, the budget of ranks after it.

    PEFT adds the regulariser (Zhang et al. 2023, eq. 4) to a model's own loss only, and here the loss is taken of class
    scores. A checkpoint from before the ranks were fixed does not fit the final network, so none counts as the best.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the best checkpoint while ranks still move."""
        config = kwargs["model"].peft_config[kwargs["model"].active_adapter]
        if state.global_step <= config.total_step - config.tfinal:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the gradient of the distance of both factors from orthogonal ones."""
        model = kwargs["model"]
        penalties = []
        for name, factor in model.named_parameters():
            if factor.requires_grad and ("lora_A" in name or "lora_B" in name):
                product = factor @ factor.T if "lora_A" in name else factor.T @ factor
                penalties.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        weight = model.peft_config[model.active_adapter].orth_reg_weight
        (weight * torch.stack(penalties).mean()).backward()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the ranks to the matrices where they matter most."""
        kwargs["model"].base_model.update_and_allocate(state.global_step)


def _weights(settings: Mapping[str, Any], job: Job) -> Network:
    wanted = settings["train"]
    if wanted not in ("all", "bias"):
        raise InputError(f"train={wanted!r} is not allowed; choose all or bias.")
    set_seed(job.plan.options.seed)
    # Training weights in a shorter format loses small steps.
    model = job.backbone.float()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        parameter.requires_grad_(wanted == "all" or parts[-1] == "bias" or bool(job.head_modules & set(parts)))
    if wanted == "bias" and not any(name.endswith(".bias") for name, _ in model.base_model.named_parameters()):
        raise InputError(f"{job.plan.spec.source.model} has no biases to train; leave bitfit out for it.")
    return Network(model)


def _adapters(settings: Mapping[str, Any], job: Job) -> Network:
    library: Any = importlib.import_module("adapters")
    given = dict(settings)
    architecture, drop = given.pop("config"), given.pop("drop", 0.0)
    model: Any = job.backbone
    carrier: Any = model.backbone if isinstance(model, MeanPooledClassifier) else model
    layers = range(int(drop * _inner_layers(job)))
    if layers:
        given["leave_out"] = list(layers)
    set_seed(job.plan.options.seed)
    library.init(carrier)
    carrier.add_adapter("compared", config=library.AdapterConfig.load(architecture, **given))
    model.requires_grad_(False)
    carrier.train_adapter("compared")
    for name, parameter in model.named_parameters():
        if job.head_modules & set(name.split(".")):
            parameter.requires_grad_(True)
    return Network(model)


def _inner_layers(job: Job) -> int:
    config: Any = job.backbone.config
    return getattr(config, "text_config", config).num_hidden_layers
