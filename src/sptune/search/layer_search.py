"""`search_prompt_layers`: from a search network and training data to the prompt layers."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.modeling.model import SPTModel
from sptune.renamed import renamed_argument
from sptune.search.layer_selection import fixed_layers, layers_to_find, select_layers
from sptune.search.problem import SearchProblem
from sptune.search.search_config import FIXED_SETTINGS, SearchConfig
from sptune.search.search_result import SearchResult
from sptune.search.searchers import find_searcher
from sptune.training.cache_settings import ActivationCacheSettings

if TYPE_CHECKING:
    from sptune.training.trainer import ClassScores

logger = logging.getLogger(__name__)


@renamed_argument("prefix_cache", "activation_cache")
def search_prompt_layers(
    network: PeftModel,
    train_dataset: Dataset,
    args: TrainingArguments,
    search: SearchConfig | None = None,
    *,
    class_scores: ClassScores | None = None,
    data_collator: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    head_learning_rate: float | None = None,
    activation_cache: ActivationCacheSettings | None = ActivationCacheSettings(),  # noqa: B008 (it is frozen)
    resume_from_checkpoint: str | bool | None = None,
    tell: Callable[[str], None] = logger.info,
) -> SearchResult:
    """Train a search network and choose the prompt layers by it.

    The fixed settings "all", "middle" and "first" need no training and return at once; "all" are all candidates. Nor do
    "spaced" and "random", and the default, "auto", with few examples.

    Args:
        network: `get_peft_model(backbone, SPTConfig(prompt_layers="search"))`; what is to be trained of it, is.
        train_dataset: all the training data; it is split in a weight half and a gate half here.
        args: training arguments of the search; epochs count over the weight half.
        search: how to search; None for the defaults.
        class_scores: as in `SPTTrainer`.
        data_collator: as in `transformers.Trainer`.
        callbacks: as in `transformers.Trainer`.
        head_learning_rate: as in `SPTTrainer`.
        activation_cache: as in `SPTTrainer`; below the lowest candidate layer.
        resume_from_checkpoint: a checkpoint folder of an interrupted search, or True for the last one in
            `args.output_dir`.
        tell: called before the search begins with what it will cost, and with what is cached; then with what there is
            to know about the choice.

    The network is left as trained; after "halving" and "exhaustive", which train networks of their own and cannot be
    resumed, as it was.

    Raises:
        InputError: the network is no search network, or the layers asked for do not fit its candidates.
    """
    search = SearchConfig() if search is None else search
    tuner, config = _search_network(network)
    candidates = tuner.candidate_layers
    if search.searcher in FIXED_SETTINGS:
        num_layers = tuner.backbone.num_layers
        return _fixed_result(config, search, candidates, num_layers)

    options = {
        "class_scores": class_scores,
        "data_collator": data_collator,
        "callbacks": callbacks,
        "head_learning_rate": head_learning_rate,
        "activation_cache": activation_cache,
    }
    sized = _with_number(search, tuner, config)  # an impossible choice fails before the training
    problem = SearchProblem(network, train_dataset, args, sized, options, resume_from_checkpoint, tell)
    findings = find_searcher(search.searcher)(problem)
    prompt_layers = findings.prompt_layers
    if prompt_layers is None:
        prompt_layers = select_layers(
            findings.scores, candidates, num_prompt_layers=sized.num_prompt_layers, threshold=sized.threshold
        )
    for remark in findings.remarks:
        tell(remark)
    logger.info("The search chose prompt layers %s of %s.", prompt_layers, candidates)
    return SearchResult(
        prompt_layers=prompt_layers,
        candidate_layers=candidates,
        scores=findings.scores,
        gates=findings.gates,
        history=findings.history,
        config=_final_config(config, prompt_layers),
        search=search,
        seconds=findings.seconds,
        steps=findings.steps,
        remarks=findings.remarks,
    )


def _search_network(network: PeftModel) -> tuple[SPTModel, SPTConfig]:
    tuner = getattr(network, "base_model", None)
    config = network.peft_config[network.active_adapter] if isinstance(tuner, SPTModel) else None
    if not isinstance(tuner, SPTModel) or not isinstance(config, SPTConfig) or not config.searching:
        raise InputError(
            f"search_prompt_layers got a {type(network).__name__} without gates; give a search network, made by "
            "get_peft_model(backbone, SPTConfig(prompt_layers='search'))."
        )
    return tuner, config


def _with_number(search: SearchConfig, tuner: SPTModel, config: SPTConfig) -> SearchConfig:
    """The same search with the number of layers that it is to find, unless a threshold says it."""
    if search.threshold is not None:
        return search
    size = sum(parameter.numel() for parameter in next(iter(tuner.generator_parameters().values())))
    number = layers_to_find(search, size, len(tuner.candidate_layers), config.placement or "")
    return dataclasses.replace(search, num_prompt_layers=number, parameter_budget=None)


def _fixed_result(config: SPTConfig, search: SearchConfig, candidates: list[int], num_layers: int) -> SearchResult:
    started = time.monotonic()
    prompt_layers = fixed_layers(search.searcher, candidates, num_layers)
    return SearchResult(
        prompt_layers=prompt_layers,
        candidate_layers=candidates,
        scores=[float(layer in prompt_layers) for layer in candidates],
        gates=None,
        history=[],
        config=_final_config(config, prompt_layers),
        search=search,
        seconds=time.monotonic() - started,
        steps=0,
    )


def _final_config(config: SPTConfig, prompt_layers: str | list[int]) -> SPTConfig:
    return dataclasses.replace(copy.deepcopy(config), prompt_layers=prompt_layers, candidate_layers=None)
