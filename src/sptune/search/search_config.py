"""`SearchConfig`: the settings of the search for the prompt layers (method sections 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sptune.errors import InputError, shortened
from sptune.prompt_config import DEFAULT_NUM_PROMPT_LAYERS
from sptune.search.searchers import MIN_EXAMPLES, SEARCHERS, SELECTION_CRITERIA

CONSISTENCIES = ("kl", "mse")
# NumPy takes no larger one.
MAX_SEED = 2**32 - 1

# "fair" was best at equal cost where data are enough to tell layers apart; with less data nothing is searched
# (docs/results/search.md).
DEFAULT_SEARCHER = "auto"


@dataclass(frozen=True)
class SearchConfig:
    """How the prompt layers are searched for, and how many of them are taken.

    At most one of `num_prompt_layers`, `threshold` and `parameter_budget` may be given; without any of them the search
    takes four layers, or two where prompts stand in front of the text. The layers of a fixed setting ("all", "middle",
    "first") must be among the candidates of the network; "all" takes every candidate.

    Nothing is trained with a fixed setting, with "spaced" and "random", and with "auto" on few examples. "halving" and
    "exhaustive" train the supernet's discrete networks one by one and leave the supernet as it was.

    Raises:
        InputError: a value is not allowed; the message names the field, the value and the values allowed.
    """

    searcher: str = field(
        default=DEFAULT_SEARCHER,
        metadata={
            "help": f"How prompt layers are chosen. auto: fair with {MIN_EXAMPLES} training examples or more, "
            "spaced with fewer.",
            "choices": tuple(SEARCHERS),
        },
    )
    selection: str | None = field(
        default=None,
        metadata={
            "help": "Selection criterion of the trained supernet. gates: the largest gates; perturbation: the layers "
            "whose removal raises the held-out loss most; sets: the set of layers with the lowest held-out loss; "
            "greedy: one layer after the other, each time the one with the lowest loss. Default: the searcher's own.",
            "choices": SELECTION_CRITERIA,
        },
    )
    num_prompt_layers: int | None = field(
        default=None,
        metadata={
            "help": "Keep this many layers. Default: {add}; prepend: {prepend}.".format(**DEFAULT_NUM_PROMPT_LAYERS)
        },
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Instead: keep the layers with a gate above this value in (0, 1), at least the one with the "
            "largest (searchers with gates)."
        },
    )
    parameter_budget: int | None = field(
        default=None, metadata={"help": "Instead: keep as many layers as fit into this many parameters."}
    )
    consistency: str = field(
        default="kl",
        metadata={
            "help": "spt_darts: architecture consistency, 'kl' (symmetric KL of the predictions) or 'mse' (of the "
            "final representations).",
            "choices": CONSISTENCIES,
        },
    )
    consistency_weight: float = field(
        default=1.0, metadata={"help": "spt_darts: lambda_c, weight of the consistency penalty in both losses."}
    )
    mask_probability: float = field(
        default=0.7,
        metadata={"help": "spt_darts: p_c, probability that a layer's gate is masked in one run of one example."},
    )
    mixed_level_weight: float = field(
        default=1.0,
        metadata={
            "help": "spt_darts: lambda_m, weight of the weight split's gate gradient, which is added to that of the "
            "architecture split."
        },
    )
    gate_learning_rate: float = field(
        default=5e-2, metadata={"help": "Constant learning rate of the gates (searchers with gates)."}
    )
    gate_interval: int = field(
        default=1,
        metadata={
            "help": "Update the gates every gate_interval steps after the warm-up; the steps between cost half "
            "(searchers with gates)."
        },
    )
    warmup_ratio: float = field(
        default=0.45,
        metadata={"help": "Share of the steps, at the start, that train only the weights (searchers with gates)."},
    )
    gate_fraction: float = field(
        default=0.5, metadata={"help": "Share of the training data in the architecture split."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the data split and of the searcher's random choices."})

    def __post_init__(self) -> None:
        _check_choice("searcher", self.searcher, tuple(SEARCHERS))
        _check_choice("consistency", self.consistency, CONSISTENCIES)
        criteria = {
            name: getattr(self, name)
            for name in ("num_prompt_layers", "threshold", "parameter_budget")
            if getattr(self, name) is not None
        }
        if len(criteria) > 1:
            given = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
            raise InputError(f"Several options select the layers: {given}; give at most one of them.")
        if criteria and SEARCHERS[self.searcher].fixed:
            name, value = next(iter(criteria.items()))
            searching = [other for other, known in SEARCHERS.items() if not known.fixed]
            raise InputError(
                f"{name}={value!r} is given, but searcher={self.searcher!r} fixes the layers; "
                f"leave {name} out, or search with one of {', '.join(searching)}."
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
        defaults = {one.name: one.default for one in fields(self)}
        check_settings(
            self.searcher,
            {name: value for name, value in asdict(self).items() if value != defaults[name]},
        )
        # The seed of a run and those of a study end here, too.
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed={shortened(self.seed)} is not allowed; choose a whole number from 0 to {MAX_SEED}.")

    @property
    def criterion(self) -> str | None:
        """`selection`, or the searcher's default; None if the searcher trains no supernet."""
        return self.selection or next(iter(SEARCHERS[self.searcher].criteria), None)

    def _check_selection(self) -> None:
        searcher = SEARCHERS[self.searcher]
        if self.selection is not None and self.selection not in searcher.criteria:
            allowed = f"choose one of {', '.join(searcher.criteria)}" if searcher.criteria else "leave it out"
            raise InputError(f"selection={self.selection!r} does not fit searcher={self.searcher!r}; {allowed}.")
        if self.threshold is None:
            return
        if self.criterion != "gates":
            raise InputError(
                f"threshold={self.threshold!r} applies to gates, but searcher={self.searcher!r} with "
                f"selection={self.criterion!r} does not select by gates; give num_prompt_layers, or search with "
                "spt_darts."
            )
        if not searcher.relaxed:
            raise InputError(
                f"threshold={self.threshold!r} applies to independent gates, but those of searcher={self.searcher!r} "
                "are probabilities that add up to 1; give num_prompt_layers."
            )

    @classmethod
    def paper(cls, **fields: Any) -> SearchConfig:
        """The search of the paper: SPT-DARTS, with layers selected by gates.

        Args:
            **fields: fields that differ from the paper's.
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
        allowed = [one.name for one in fields(cls)]
        unknown = [name for name in values if name not in allowed]
        if unknown:
            raise InputError(f"SearchConfig has no field {unknown[0]!r}; its fields are {', '.join(allowed)}.")
        return cls(**values)


def check_settings(searcher: str, given: Mapping[str, Any]) -> None:
    """Refuse settings of other searchers.

    Args:
        searcher: its name.
        given: settings that differ from their defaults, and further ones that were given.

    Raises:
        InputError: one of them has no effect with this searcher.
    """
    for name in given:
        takers = [other for other, known in SEARCHERS.items() if name in known.settings]
        if takers and searcher not in takers:
            raise InputError(
                f"{name}={given[name]!r} has no effect with searcher={searcher!r}; leave it out, or choose one of "
                f"{', '.join(takers)}."
            )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r} is not allowed; choose one of {', '.join(allowed)}.")


def _check_range(name: str, value: object, allowed: str, inside: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and value != math.inf and inside(value)):
        raise InputError(f"{name}={value!r} is not allowed; choose a finite number {allowed}.")
