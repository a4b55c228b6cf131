"""`SearchConfig`: what a user decides about the search for the prompt layers (method sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sptune.errors import InputError
from sptune.search.searchers import NAMES, ways_to_read

FIXED_SETTINGS = ("all", "middle", "first")
SEARCHERS = (*NAMES, *FIXED_SETTINGS)
CONSISTENCIES = ("kl", "mse")
SELECTION_CRITERIA = ("gates", "perturbation", "sets", "greedy")

# The search that proved best at equal cost where data are enough to tell layers apart, else none
# (docs/results/search.md).
DEFAULT_SEARCHER = "auto"
# What trains no network to find the layers, whatever the data.
UNTRAINED = (*FIXED_SETTINGS, "random", "spaced")
# Half of them are held out, and half of those confirm that layers found are better than evenly spaced ones. On 500 that
# shows differences of a few points of accuracy; the best and the worst pair of layers are hardly further apart.
FEWEST_EXAMPLES = 2000
# Settings that only spt_darts has, and those of all searchers that train gates.
SPT_DARTS_SETTINGS = ("consistency", "consistency_weight", "mask_probability", "mixed_level_weight")
GATE_SETTINGS = ("gate_learning_rate", "gate_interval", "warmup_ratio")


@dataclass(frozen=True)
class SearchConfig:
    """How the prompt layers are searched for, and how many of them are taken.

    At most one of `num_prompt_layers`, `threshold` and `parameter_budget` may be given; without any of them the search
    takes four layers, or two where prompts stand in front of the text.

    Args:
        searcher: one of the files in `sptune/search/searchers`, or a fixed setting that needs no training: "all",
            "middle", "first". "auto" is "fair" from `FEWEST_EXAMPLES` training examples on and "spaced" below. The
            layers of fixed settings must be among the network's candidates ("all" are all of these).
        selection: how a trained search network is read. "gates": the largest gates; "perturbation": the layers without
            whose prompt the held-out loss rises most; "sets": the set of layers with the lowest held-out loss;
            "greedy": one layer after the other, always the one that leaves the lowest. None for the searcher's own way.
        num_prompt_layers: take this many layers.
        threshold: take all layers whose gate is above this value in (0, 1), and at least the one with the largest.
        parameter_budget: take as many layers as have no more parameters than this together.
        consistency: "kl" (symmetric KL of the predictions) or "mse" (of the final representations); this and the next
            three are of spt_darts only.
        consistency_weight: lambda_c, the weight of the consistency penalty in both losses.
        mask_probability: p_c, the probability that a layer's gate is masked out for one run of one example.
        mixed_level_weight: lambda_m, how much of the weight half's gate gradient joins the gate half's.
        gate_learning_rate: constant learning rate of the gate parameters alpha; this and the next two are of all
            searchers that train gates.
        gate_interval: after the warm-up, the gates move in every so-many-th step; the steps between cost half.
        warmup_ratio: share of the steps, from the first on, in which only the weights learn.
        gate_fraction: share of the training data held out for the gates.
        seed: seed of the data's split and of whatever a searcher draws.

    Raises:
        InputError: a value is not allowed; the message names the field, the value and the values allowed.
    """

    searcher: str = DEFAULT_SEARCHER
    selection: str | None = None
    num_prompt_layers: int | None = None
    threshold: float | None = None
    parameter_budget: int | None = None
    consistency: str = "kl"
    consistency_weight: float = 1.0
    mask_probability: float = 0.7
    mixed_level_weight: float = 1.0
    gate_learning_rate: float = 5e-2
    gate_interval: int = 1
    warmup_ratio: float = 0.45
    gate_fraction: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choice("searcher", self.searcher, SEARCHERS)
        _check_choice("consistency", self.consistency, CONSISTENCIES)
        criteria = {
            name: getattr(self, name)
            for name in ("num_prompt_layers", "threshold", "parameter_budget")
            if getattr(self, name) is not None
        }
        if len(criteria) > 1:
            given = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
            raise InputError(f"SearchConfig got {given}; give at most one of them.")
        if criteria and self.searcher in FIXED_SETTINGS:
            name, value = next(iter(criteria.items()))
            raise InputError(
                f"SearchConfig got {name}={value!r}, but searcher={self.searcher!r} fixes the layers; "
                f"leave {name} out, or search with one of {', '.join(NAMES)}."
            )
        for name in ("num_prompt_layers", "parameter_budget", "gate_interval"):
            value = 1 if getattr(self, name) is None else getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name}={value!r} is not allowed; choose a whole number of at least 1.")
        if self.threshold is not None:
            _check_range("threshold", self.threshold, "in (0, 1)", lambda value: 0 < value < 1)
        _check_range("consistency_weight", self.consistency_weight, "of at least 0", lambda value: value >= 0)
        _check_range("mask_probability", self.mask_probability, "in [0, 1)", lambda value: 0 <= value < 1)
        _check_range("mixed_level_weight", self.mixed_level_weight, "of at least 0", lambda value: value >= 0)
        _check_range("gate_learning_rate", self.gate_learning_rate, "above 0", lambda value: value > 0)
        _check_range("warmup_ratio", self.warmup_ratio, "in [0, 1)", lambda value: 0 <= value < 1)
        _check_range("gate_fraction", self.gate_fraction, "in (0, 1)", lambda value: 0 < value < 1)
        self._check_selection()
        defaults = {field.name: field.default for field in fields(self)}
        check_settings(
            self.searcher,
            {name: value for name, value in asdict(self).items() if value != defaults[name]},
        )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed={self.seed!r} is not allowed; choose a whole number of at least 0.")

    @property
    def reading(self) -> str | None:
        """`selection`, or the searcher's own way; None if the searcher trains no network that could be read."""
        if self.searcher in FIXED_SETTINGS:
            return None
        return self.selection or next(iter(ways_to_read(self.searcher)), None)

    def _check_selection(self) -> None:
        ways = () if self.searcher in FIXED_SETTINGS else ways_to_read(self.searcher)
        if self.selection is not None and self.selection not in ways:
            allowed = f"choose one of {', '.join(ways)}" if ways else "leave it out, since nothing is left to read"
            raise InputError(f"selection={self.selection!r} does not go with searcher={self.searcher!r}; {allowed}.")
        if self.threshold is not None and self.searcher == "sampled":
            raise InputError(
                f"threshold={self.threshold!r} is one of gates that open on their own, and those of searcher='sampled' "
                "are probabilities that add up to 1; give num_prompt_layers."
            )
        if self.threshold is not None and self.reading != "gates":
            raise InputError(
                f"threshold={self.threshold!r} is one of gates, and searcher={self.searcher!r} with "
                f"selection={self.reading!r} does not go by gates; give num_prompt_layers, or search with spt_darts."
            )

    @classmethod
    def paper(cls, **fields: Any) -> SearchConfig:
        """The search of the paper: SPT-DARTS, read by its gates.

        Args:
            fields: of this class, that differ from the paper's.
        """
        return cls(**{"searcher": "spt_darts", "selection": "gates", **fields})

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SearchConfig:
        """The configuration with these fields.

        Raises:
            InputError: a name is not a field of this class, or a value is not allowed.
        """
        allowed = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in allowed]
        if unknown:
            raise InputError(f"SearchConfig has no field {unknown[0]!r}; its fields are {', '.join(allowed)}.")
        return cls(**values)


def trains_network(searcher: str, examples: int) -> bool:
    """Whether a searcher trains a network when it is given so many training examples."""
    return searcher not in UNTRAINED and (searcher != "auto" or examples >= FEWEST_EXAMPLES)


def settings_of(searcher: str) -> tuple[str, ...]:
    """Which of `SPT_DARTS_SETTINGS` and `GATE_SETTINGS` a searcher goes by."""
    gated = searcher not in FIXED_SETTINGS and "gates" in ways_to_read(searcher)
    return (*(SPT_DARTS_SETTINGS if searcher == "spt_darts" else ()), *(GATE_SETTINGS if gated else ()))


def check_settings(searcher: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that a searcher does not go by.

    Args:
        searcher: its name.
        given: settings that differ from their defaults, and whatever else was given.

    Raises:
        InputError: one of them says nothing to this searcher.
    """
    for name in (*SPT_DARTS_SETTINGS, *GATE_SETTINGS):
        if name in given and name not in settings_of(searcher):
            takers = [one for one in SEARCHERS if name in settings_of(one)]
            raise InputError(
                f"{name}={given[name]!r} says nothing to searcher={searcher!r}; leave it out, or choose one of "
                f"{', '.join(takers)}."
            )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not allowed; choose one of {', '.join(allowed)}.")


def _check_range(name: str, value: object, allowed: str, inside: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not inside(value):
        raise InputError(f"{name}={value!r} is not allowed; choose a number {allowed}.")
