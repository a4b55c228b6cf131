"""Whether prompts and their search fit a backbone, told from its configuration alone."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

from sptune.config import SPTConfig, default_candidates
from sptune.errors import InputError
from sptune.modeling.generators import build_generator
from sptune.modeling.loading import text_config
from sptune.prompt_config import PromptConfig
from sptune.runs.options.run_options import RunOptions
from sptune.search.layer_selection import fixed_layers, layers_to_find
from sptune.search.searchers import FIXED_SETTINGS, check_sets


def candidate_layers(options: RunOptions, config: PretrainedConfig) -> list[int]:
    """The layers that the search may choose from."""
    count = text_config(config).num_hidden_layers
    return options.prompts.candidate_layers or (
        list(range(count))
        if options.search.searcher in FIXED_SETTINGS
        else default_candidates(count, str(options.prompts.placement))
    )


def check_prompts(options: RunOptions, config: PretrainedConfig) -> None:
    """Refuse layers, generators and a search that do not fit the backbone or each other.

    Raises:
        InputError: which, and what would fit.
    """
    _check_layers(options, config)
    size = _generator_size(options.prompts, config)
    search = options.search
    if options.prompts.searching and search.searcher not in FIXED_SETTINGS and search.threshold is None:
        candidates = len(candidate_layers(options, config))
        number = layers_to_find(search, size, candidates, str(options.prompts.placement))
        check_sets(search.searcher, number, candidates)


def _check_layers(options: RunOptions, config: PretrainedConfig) -> None:
    """Refuse layers that the backbone does not have, and more layers than there are candidates."""
    count = text_config(config).num_hidden_layers
    for name in ("candidate_layers", "prompt_layers"):
        layers = getattr(options.prompts, name)
        if isinstance(layers, list) and not all(0 <= layer < count for layer in layers):
            raise InputError(f"{name}={layers} names a layer that is not there; this backbone has 0 to {count - 1}.")
    candidates, search = candidate_layers(options, config), options.search
    if options.prompts.searching and search.searcher in FIXED_SETTINGS:
        fixed_layers(search.searcher, candidates, count)
    wanted = search.num_prompt_layers
    if wanted is not None and wanted > len(candidates):
        remedy = "name more candidate_layers" if len(candidates) < count else f"choose 1 to {count}"
        raise InputError(
            f"num_prompt_layers={wanted} is more than the {len(candidates)} layers there are to choose from; {remedy}."
        )


def _generator_size(prompts: PromptConfig, config: PretrainedConfig) -> int:
    """Parameters of one layer's generator; refuses one that does not fit the backbone."""
    try:
        with torch.device("meta"):
            generator = build_generator(SPTConfig.from_prompts(prompts), text_config(config).hidden_size)
    except ValueError as error:
        raise InputError(str(error)) from error
    return sum(parameter.numel() for parameter in generator.parameters())
