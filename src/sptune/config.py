"""`SPTConfig`: what a user decides about the prompts, in PEFT's words where PEFT has one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType
from transformers.activations import ACT2FN

from sptune.modeling.generators import GENERATORS, PLACEMENTS
from sptune.registration import PEFT_TYPE

NAMED_SETTINGS = ("search", "all", "middle", "first")
# What only prompts in front of the text have, and what it is if nothing is said.
PREPEND_DEFAULTS: dict[str, Any] = {
    "num_virtual_tokens": 10,
    "residual": True,
    "mixing_rate": 1.0,
    "visibility": "gated",
}
MOST_CANDIDATES = 10


@dataclass
class SPTConfig(PeftConfig):
    """Configuration of Selective Prompt Tuning.

    `placement` says what a prompt is (method sections 2 and 8). With `add`, the default, `num_virtual_tokens`,
    `residual`, `mixing_rate`, `visibility` and the pooling generators are refused: they are of `prepend`.

    `prompt_layers="search"` gives the search network, with a generator and a gate at every candidate layer; any other
    value gives a final network, with generators at just those layers.

    Raises:
        ValueError: a field's value is not allowed; the message names the field, the value and the values allowed.
    """

    placement: str | None = field(
        default=None,
        metadata={
            "help": "'add': a vector is added to each token at the input of a prompt layer; 'prepend': prompt vectors "
            "stand in front of the text from the first prompt layer on."
        },
    )
    prompt_layers: str | list[int] = field(
        default="search",
        metadata={"help": "'search', 'all', 'middle' (layer L // 2), 'first' (layer 0), or a list of layer indices."},
    )
    candidate_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers the search may use; None for at most ten above the lowest sixth. "
            "Only with prompt_layers='search'."
        },
    )
    generator: str | None = field(
        default=None,
        metadata={
            "help": "What makes the prompts. add: 'bottleneck' (default) or 'static'; prepend: 'appg' (default), "
            "'mppg', 'npg', 'attention' or 'static'."
        },
    )
    bottleneck_dim: int = field(default=8, metadata={"help": "r, the width between the generator's projections."})
    projection: str = field(
        default="linear", metadata={"help": "'linear', or 'phm' with about 1/phm_dim of the parameters."}
    )
    phm_dim: int = field(default=4, metadata={"help": "n of the PHM projection; divides the hidden size and r."})
    activation: str = field(default="relu", metadata={"help": "A name in transformers' ACT2FN."})
    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "prepend: m, the number of prompt vectors at a layer (default 10)."}
    )
    residual: bool | None = field(
        default=None,
        metadata={
            "help": "prepend, 'appg', 'mppg' and 'attention': add what the generator computes to the pooled states "
            "themselves, so that prompts begin as pieces of the text and not as noise (default true)."
        },
    )
    mixing_rate: float | None = field(
        default=None,
        metadata={
            "help": "prepend: tau in (0, 1], how much of a new prompt replaces the one from the layer below "
            "(default 1)."
        },
    )
    visibility: str | None = field(
        default=None,
        metadata={
            "help": "prepend: 'gated' (default), slots weigh in attention by the probability that they are there, or "
            "'always', they are always visible."
        },
    )
    init_weights: bool = field(
        default=True,
        metadata={
            "help": "False draws at random what is zero at first, so that a fresh adapter changes the output; for "
            "tests, as in PEFT."
        },
    )
    layers_path: str | None = field(
        default=None,
        metadata={"help": "Dotted path of the list of blocks, for a model family that sptune does not know."},
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules besides the prompts to train and save, such as a new head: ends of their paths in "
            "the backbone."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement is None:
            # Only a file names the PEFT type, and one without a placement is from before there were two.
            self.placement = "add" if self.peft_type is None else "prepend"
        self.peft_type = PeftType(PEFT_TYPE)
        # PEFT reads this attribute on every tuner's configuration; which blocks it names follows from the layers.
        self.target_modules: set[str] | None = None
        _check_choice("placement", self.placement, PLACEMENTS)
        self._settle_placement()
        if not isinstance(self.init_weights, bool):
            raise ValueError(f"init_weights={self.init_weights!r} is not allowed; choose True or False.")
        _check_choice("projection", self.projection, ("linear", "phm"))
        _check_positive("bottleneck_dim", self.bottleneck_dim)
        _check_positive("phm_dim", self.phm_dim)
        if self.activation not in ACT2FN:
            raise ValueError(f"activation={self.activation!r} is not known; choose one of {sorted(ACT2FN)}.")
        if self.projection == "phm" and self.bottleneck_dim % self.phm_dim:
            raise ValueError(
                f"phm_dim={self.phm_dim} does not divide bottleneck_dim={self.bottleneck_dim}; "
                "change one so that it does."
            )
        if self.modules_to_save is not None:
            self.modules_to_save = _check_names("modules_to_save", self.modules_to_save)
        if isinstance(self.prompt_layers, str):
            _check_choice("prompt_layers", self.prompt_layers, NAMED_SETTINGS, " or a list of layer indices")
        else:
            self.prompt_layers = _check_layers("prompt_layers", self.prompt_layers)
        if self.candidate_layers is not None:
            self.candidate_layers = _check_layers("candidate_layers", self.candidate_layers)
            if self.prompt_layers != "search":
                raise ValueError(
                    f"candidate_layers={self.candidate_layers} has a meaning only with prompt_layers='search', "
                    f"but prompt_layers={self.prompt_layers!r}; leave one of them out."
                )

    def _settle_placement(self) -> None:
        """Give the fields of `prepend` their defaults, or refuse them with `add`."""
        generators = GENERATORS[self.placement or ""]
        if self.generator is None:
            self.generator = generators[0]
        elif self.generator not in generators:
            for other in PLACEMENTS:
                if self.generator in GENERATORS[other]:
                    raise ValueError(
                        f"generator={self.generator!r} goes with placement={other!r}, not with "
                        f"placement={self.placement!r}; add placement={other!r}, or choose one of "
                        f"{', '.join(generators)}."
                    )
            _check_choice("generator", self.generator, generators)
        if self.placement == "add":
            for name in PREPEND_DEFAULTS:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} is a setting of prompts in front of the text and has no "
                        f"effect with placement='add'; leave {name} out, or add placement='prepend'."
                    )
            return
        for name, default in PREPEND_DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        _check_positive("num_virtual_tokens", self.num_virtual_tokens)
        if not isinstance(self.residual, bool):
            raise ValueError(f"residual={self.residual!r} is not allowed; choose True or False.")
        if not (isinstance(self.mixing_rate, (int, float)) and 0 < self.mixing_rate <= 1):
            raise ValueError(f"mixing_rate={self.mixing_rate!r} is not allowed; choose a number in (0, 1].")
        _check_choice("visibility", self.visibility, ("gated", "always"))

    @classmethod
    def paper(cls, **fields: Any) -> SPTConfig:
        """The prompts of the paper: in front of the text, made by a pooled generator with a bottleneck (`appg`).

        Args:
            fields: of this class, that differ from the paper's.
        """
        return cls(**{"placement": "prepend", "generator": "appg", "residual": False, **fields})

    @property
    def searching(self) -> bool:
        """Whether this is a search network's configuration, with gates."""
        return self.prompt_layers == "search"


def default_candidates(num_layers: int) -> list[int]:
    """The layers that a search chooses from if nothing else is said.

    All but the lowest sixth: no layer did worse than layer 0 in any table (docs/results/search.md), and the lower the
    first prompt, the less can be cached. Of these only every n-th, so that at most 10 are left: a search's steps are
    shared by its candidates, and neighbors in a deep backbone are worth much the same.
    """
    lowest = num_layers // 6
    return list(range(lowest, num_layers, max(1, math.ceil((num_layers - lowest) / MOST_CANDIDATES))))


def resolve_prompt_layers(config: SPTConfig, num_layers: int) -> list[int]:
    """The layer indices, ascending, that carry a generator in a backbone of `num_layers` blocks.

    Raises:
        ValueError: a layer index does not exist in the backbone.
    """
    if config.prompt_layers == "search":
        layers = default_candidates(num_layers) if config.candidate_layers is None else config.candidate_layers
    elif isinstance(config.prompt_layers, str):
        layers = {"all": list(range(num_layers)), "middle": [num_layers // 2], "first": [0]}[config.prompt_layers]
    else:
        layers = config.prompt_layers
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise ValueError(
            f"prompt_layers/candidate_layers name layer {beyond[0]}, but the backbone has {num_layers} layers; "
            f"allowed are 0 to {num_layers - 1}."
        )
    return sorted(layers)


def _check_choice(name: str, value: object, allowed: tuple[str, ...], more: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not allowed; choose one of {', '.join(allowed)}{more}.")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not allowed; choose a whole number of at least 1.")


def _check_names(name: str, given: object) -> list[str]:
    if isinstance(given, str):
        raise ValueError(f"{name}={given!r} is not allowed; give a list of names, such as [{given!r}].")
    names = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    for one in names:
        if not isinstance(one, str) or not one:
            raise ValueError(f"{name} holds {one!r}; give a list of names of modules, such as ['classifier'].")
    return [str(one) for one in names]


def _check_layers(name: str, layers: object) -> list[int]:
    try:
        indices = list(layers)  # type: ignore[call-overload]
    except TypeError:
        raise ValueError(f"{name}={layers!r} is not allowed; give a list of layer indices.") from None
    if not indices:
        raise ValueError(f"{name} is empty; give at least one layer index.")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise ValueError(f"{name} holds {index!r}; layer indices are whole numbers from 0.")
    if len(set(indices)) != len(indices):
        raise ValueError(f"{name}={indices} names a layer twice; name each once.")
    return sorted(indices)
