"""`discretize` turns a supernet into the final network."""

from __future__ import annotations

import dataclasses
from typing import cast

from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.modeling.model import SPTModel


def discretize(network: PeftModel, prompt_layers: list[int], warm_start: bool = False) -> PeftModel:
    """Turn a supernet into the final network with prompts at the given layers.

    The backbone is not copied: the supernet cannot be used afterwards.

    Args:
        network: a `PeftModel` with one SPT adapter whose `prompt_layers` is "search".
        prompt_layers: the layers to keep, candidates of the search.
        warm_start: whether to keep the generators and `modules_to_save` of the supernet. Otherwise generators are new,
            and `modules_to_save` are as they were before the search.

    Returns:
        The final network, without gates; all generators and `modules_to_save` are trainable.

    Raises:
        InputError: the network is not a supernet, or a layer was not a candidate.
    """
    tuner = network.base_model
    if not isinstance(tuner, SPTModel) or len(network.peft_config) != 1:
        raise InputError("discretize needs a model with one adapter, made by get_peft_model with an SPTConfig.")
    candidates = list(tuner.gate_parameters())
    unknown = [layer for layer in prompt_layers if layer not in candidates]
    if unknown:
        raise InputError(f"Layer {unknown[0]} was not a candidate of the search; candidates are {candidates}.")
    adapter_name = network.active_adapter
    searched = cast(SPTConfig, network.peft_config[adapter_name])
    config = dataclasses.replace(
        searched, prompt_layers=sorted(prompt_layers), candidate_layers=None, inference_mode=False
    )
    weights = None
    if warm_start:
        state = get_peft_model_state_dict(network, adapter_name=adapter_name)
        weights = {name: tensor.clone() for name, tensor in state.items()}
    for module in tuner.modules():
        if isinstance(module, ModulesToSaveWrapper):  # PEFT's unload keeps the trained module, not the original one
            module.modules_to_save[adapter_name].load_state_dict(module.original_module.state_dict())
    model = get_peft_model(tuner.unload(), config, adapter_name=adapter_name)
    if weights is not None:
        kept = get_peft_model_state_dict(model, adapter_name=adapter_name).keys()
        set_peft_model_state_dict(model, {key: weights[key] for key in kept}, adapter_name=adapter_name)
    return model
