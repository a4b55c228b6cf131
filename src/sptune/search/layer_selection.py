"""Selects prompt layers: by scores (method section 5), at even distances, or by a fixed setting such as "all"."""

from __future__ import annotations

from collections.abc import Sequence

from sptune.config import SPTConfig, resolve_prompt_layers
from sptune.errors import InputError
from sptune.prompt_config import DEFAULT_NUM_PROMPT_LAYERS
from sptune.search.search_config import SearchConfig

LayerSet = tuple[int, ...]


def select_layers(
    scores: Sequence[float],
    candidates: Sequence[int],
    *,
    num_prompt_layers: int | None = None,
    threshold: float | None = None,
) -> list[int]:
    """The prompt layers that the scores select, in ascending order; exactly one of the two criteria is given.

    Of equal scores the higher layer is taken first, since it costs less to train.

    Args:
        scores: gates a_i or other scores, one for each candidate; the larger, the better.
        candidates: layer indices of the candidates.
        num_prompt_layers: take this many, those with the largest scores.
        threshold: take all with a score above it, and always the layer with the largest score.

    Raises:
        InputError: no or several criteria, or more layers asked for than there are candidates.
    """
    if len(scores) != len(candidates):
        raise InputError(f"select_layers got {len(scores)} scores for {len(candidates)} candidate layers.")
    ranked = sorted(zip(scores, candidates, strict=True), reverse=True)
    if num_prompt_layers is not None and threshold is None:
        check_number(num_prompt_layers, len(ranked))
        return sorted(layer for _, layer in ranked[:num_prompt_layers])
    if threshold is None or num_prompt_layers is not None:
        raise InputError(
            f"select_layers needs exactly one of num_prompt_layers and threshold, got {num_prompt_layers} and "
            f"{threshold}."
        )
    above = [layer for score, layer in ranked if score > threshold]
    return sorted(above or [ranked[0][1]])


def evenly_spaced(candidates: Sequence[int], number: int) -> list[int]:
    """Candidates at even distances, the choice without a search; a single one is the middle one.

    Args:
        candidates: layer indices, ascending.
        number: of layers.
    """
    return [candidates[len(candidates) * (place + 1) // (number + 1)] for place in range(number)]


def fixed_layers(setting: str, candidates: list[int], num_layers: int) -> list[int]:
    """The layers of "all", which are all candidates, "middle" or "first".

    Args:
        setting: which.
        candidates: layer indices, ascending.
        num_layers: of the backbone.

    Raises:
        InputError: the layer is no candidate.
    """
    layers = candidates if setting == "all" else resolve_prompt_layers(SPTConfig(prompt_layers=setting), num_layers)
    if not set(layers) <= set(candidates):
        raise InputError(
            f"searcher={setting!r} is layer {layers[0]}, which is not among the candidate_layers {candidates}; add it "
            "to them, or choose another searcher."
        )
    return layers


def check_number(num_prompt_layers: int, candidates: int) -> None:
    """Refuse to select more layers than there are.

    Raises:
        InputError: there are fewer candidates.
    """
    if num_prompt_layers > candidates:
        raise InputError(
            f"num_prompt_layers={num_prompt_layers}, but there are only {candidates} candidate layers; "
            f"choose 1 to {candidates}."
        )


def layers_to_find(search: SearchConfig, layer_parameters: int, candidates: int, placement: str) -> int:
    """How many layers a search without a threshold finds: the number given, what a budget pays for, or the default.

    Args:
        search: the user's choices.
        layer_parameters: those of one layer's generator; all candidates have the same kind.
        candidates: number of candidate layers.
        placement: of the prompts; each has its default number.

    Raises:
        InputError: the budget is below one generator, or more layers are asked for than there are.
    """
    budget = search.parameter_budget
    if budget is None:
        number = search.num_prompt_layers or min(DEFAULT_NUM_PROMPT_LAYERS[placement], candidates)
        check_number(number, candidates)
        return number
    if budget < layer_parameters:
        raise InputError(
            f"parameter_budget={budget} is less than the {layer_parameters} parameters of one layer's "
            "generator; raise the budget, or take a smaller generator (bottleneck_dim, projection='phm')."
        )
    return min(budget // layer_parameters, candidates)
