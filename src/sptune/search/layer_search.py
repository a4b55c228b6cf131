"""`search_prompt_layers`: from a supernet and training data to the prompt layers."""

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
from sptune.search.problem import Findings, SearchProblem
from sptune.search.search_config import SearchConfig
from sptune.search.search_result import SearchResult
from sptune.search.searchers import SEARCHERS, load_searcher
from sptune.training.caching.cache_settings import ActivationCacheSettings

if TYPE_CHECKING:
    from sptune.training.trainer import ClassScores, RowLosses

logger = logging.getLogger(__name__)


@renamed_argument("prefix_cache", "activation_cache")
def search_prompt_layers(
    network: PeftModel,
    train_dataset: Dataset,
    args: TrainingArguments,
    search: SearchConfig | None = None,
    *,
    class_scores: ClassScores | None = None,
    problem_type: str | None = None,
    class_loss: RowLosses | None = None,
    data_collator: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    head_learning_rate: float | None = None,
    activation_cache: ActivationCacheSettings | None = ActivationCacheSettings(),  # noqa: B008 (it is frozen)
    resume_from_checkpoint: str | bool | None = None,
    tell: Callable[[str], None] = logger.info,
) -> SearchResult:
    """Train a supernet in place and choose the prompt layers by it.

    Args:
        network: `get_peft_model(backbone, SPTConfig(prompt_layers="search"))`.
        train_dataset: all the training data, for the weight split and the architecture split.
        args: training arguments of the search; epochs count over the weight split.
        search: how to search; None for the defaults. See `SearchConfig` for searchers that train nothing.
        class_scores: as in `SPTTrainer`.
        problem_type: as in `SPTTrainer`.
        class_loss: as in `SPTTrainer`.
        data_collator: as in `transformers.Trainer`.
        callbacks: as in `transformers.Trainer`.
        head_learning_rate: as in `SPTTrainer`.
        activation_cache: as in `SPTTrainer`; below the lowest candidate layer.
        resume_from_checkpoint: as in `transformers.Trainer.train`; "halving" and "exhaustive" cannot be resumed.
        tell: receives messages before the search, its cost and what is cached; the result holds remarks on the choice.

    Raises:
        SptuneError: the training diverged, or, as InputError, the network is no supernet or what is given does not fit.
    """
    search = SearchConfig() if search is None else search
    tuner, config = _supernet(network)
    if SEARCHERS[search.searcher].fixed:
        return _fixed_result(config, search, tuner.generator_layers, tuner.backbone.num_layers)
    options: dict[str, Any] = {"class_scores": class_scores, "data_collator": data_collator, "callbacks": callbacks}
    options |= {"problem_type": problem_type, "class_loss": class_loss, "head_learning_rate": head_learning_rate}
    options["activation_cache"] = activation_cache
    problem = SearchProblem(network, train_dataset, args, search, options, resume_from_checkpoint, tell)
    return _search(problem, config, search)


def _search(problem: SearchProblem, config: SPTConfig, search: SearchConfig) -> SearchResult:
    """Find the layers, and log the remarks about them."""
    # An impossible choice fails before the training.
    problem = dataclasses.replace(problem, search=_with_number(search, problem.tuner, config))
    findings = load_searcher(search.searcher)(problem)
    for remark in findings.remarks:
        logger.info("%s", remark)
    result = _result(findings, config, search, problem.search, problem.candidates)
    logger.info("The search chose prompt layers %s of %s.", result.prompt_layers, result.candidate_layers)
    return result


def _result(
    findings: Findings, config: SPTConfig, search: SearchConfig, sized: SearchConfig, candidates: list[int]
) -> SearchResult:
    """The result of a search: the layers that were found, or those that the scores select."""
    prompt_layers = findings.prompt_layers
    if prompt_layers is None:
        prompt_layers = select_layers(
            findings.scores, candidates, num_prompt_layers=sized.num_prompt_layers, threshold=sized.threshold
        )
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


def _supernet(network: PeftModel) -> tuple[SPTModel, SPTConfig]:
    tuner = getattr(network, "base_model", None)
    config = network.peft_config[network.active_adapter] if isinstance(tuner, SPTModel) else None
    if not isinstance(tuner, SPTModel) or not isinstance(config, SPTConfig) or not config.searching:
        raise InputError(
            f"search_prompt_layers got a {type(network).__name__} without gates; give a supernet made by "
            "get_peft_model(backbone, SPTConfig(prompt_layers='search'))."
        )
    return tuner, config


def _with_number(search: SearchConfig, tuner: SPTModel, config: SPTConfig) -> SearchConfig:
    """The same search with the number of layers to find, unless a threshold is given."""
    if search.threshold is not None:
        return search
    size = sum(parameter.numel() for parameter in next(iter(tuner.generator_parameters().values())))
    number = layers_to_find(search, size, len(tuner.generator_layers), config.placement or "")
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
