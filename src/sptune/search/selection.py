"""From gates to prompt layers (method section 5): by number of layers, by threshold, or by a parameter budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sptune.errors import InputError


def select_layers(
    gates: Sequence[float],
    candidates: Sequence[int],
    *,
    num_prompt_layers: int | None = None,
    threshold: float | None = None,
    parameter_budget: int | None = None,
    parameters_per_layer: Mapping[int, int] | None = None,
) -> list[int]:
    """The prompt layers that the gates choose, in ascending order; exactly one of the three criteria is given.

    Layers are taken by falling gate. Between equal gates the higher layer goes first: it is the cheaper one to train.

    Args:
        gates: gate values a_i, one for each candidate.
        candidates: layer indices of the candidates.
        num_prompt_layers: take this many.
        threshold: take all above it; the layer with the largest gate is taken always.
        parameter_budget: take those whose generators fit together; a layer that no longer fits is passed over.
        parameters_per_layer: number of generator parameters of each candidate, for `parameter_budget`.

    Raises:
        InputError: no or several criteria, more layers asked for than there are candidates, or a budget below the
            smallest generator.
    """
    if len(gates) != len(candidates):
        raise InputError(f"select_layers got {len(gates)} gates for {len(candidates)} candidate layers.")
    criteria = [num_prompt_layers, threshold, parameter_budget]
    if sum(criterion is not None for criterion in criteria) != 1:
        raise InputError(
            f"select_layers needs exactly one of num_prompt_layers, threshold and parameter_budget, got {criteria}."
        )
    ranked = sorted(zip(gates, candidates, strict=True), reverse=True)
    if num_prompt_layers is not None:
        if num_prompt_layers > len(ranked):
            raise InputError(
                f"num_prompt_layers={num_prompt_layers}, but there are only {len(ranked)} candidate layers; "
                f"choose 1 to {len(ranked)}."
            )
        return sorted(layer for _, layer in ranked[:num_prompt_layers])
    if threshold is not None:
        above = [layer for gate, layer in ranked if gate > threshold]
        return sorted(above or [ranked[0][1]])
    if parameters_per_layer is None:
        raise InputError("select_layers needs parameters_per_layer to keep to a parameter_budget.")
    return _fill_budget([layer for _, layer in ranked], parameter_budget or 0, parameters_per_layer)


def _fill_budget(ranked_layers: list[int], budget: int, parameters_per_layer: Mapping[int, int]) -> list[int]:
    smallest = min(parameters_per_layer[layer] for layer in ranked_layers)
    if budget < smallest:
        raise InputError(
            f"parameter_budget={budget} is less than the {smallest} parameters of one layer's generator; "
            "raise the budget, or take a smaller generator (bottleneck_dim, projection='phm')."
        )
    chosen, left = [], budget
    for layer in ranked_layers:
        if parameters_per_layer[layer] <= left:
            chosen.append(layer)
            left -= parameters_per_layer[layer]
    return sorted(chosen)
