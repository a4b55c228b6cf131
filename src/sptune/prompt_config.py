"""`PromptConfig`: what a user decides about the prompts, in PEFT's words where PEFT has one.

`SPTConfig` is the same as a configuration of PEFT. This module imports neither PEFT nor PyTorch, so that a command line
can list the options at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sptune.errors import InputError, shortened

PLACEMENTS = ("add", "prepend")
# By placement, the default first.
GENERATORS: dict[str, tuple[str, ...]] = {
    "add": ("bottleneck", "static"),
    "prepend": ("appg", "mppg", "npg", "attention", "static"),
}
NAMED_SETTINGS = ("search", "all", "middle", "first")
PROJECTIONS = ("linear", "phm")
VISIBILITIES = ("gated", "always")
# Larger widths and more layers than any backbone has; beyond them a file is damaged or hostile.
MAX_WIDTH, MAX_LAYERS = 2**20, 10_000
# The fields that only prompts in front of the text have, and their defaults.
PREPEND_DEFAULTS: dict[str, Any] = {
    "num_virtual_tokens": 10,
    "residual": True,
    "mixing_rate": 1.0,
    "visibility": "gated",
}
# By placement: r, and how many layers a search takes. With about as many parameters, four narrow bottlenecks do better
# than two wide ones (benchmarks/defaults.py).
DEFAULT_BOTTLENECK_DIM = {"add": 4, "prepend": 8}
# r of added prompts in runs whose task is to generate text, which learn more (benchmarks/instruction.py).
GENERATION_BOTTLENECK_DIM = 64
DEFAULT_NUM_PROMPT_LAYERS = {"add": 4, "prepend": 2}


@dataclass
class PromptConfig:
    """The prompts: where they go, and what makes them.

    `placement` says what a prompt is (method sections 2 and 8). The fields `num_virtual_tokens`, `residual`,
    `mixing_rate` and `visibility` and the pooling generators belong to `prepend`; `add`, the default, refuses them.

    `prompt_layers="search"` gives the supernet, with a generator and a gate at every candidate layer; any other value
    gives a final network, with generators at just those layers.

    Raises:
        InputError: a field's value is not allowed; the message names the field, the value and the values allowed.
    """

    placement: str | None = field(
        default=None,
        metadata={
            "help": "'add': add a vector to each token at the input of a prompt layer (default); 'prepend': put prompt "
            "vectors in front of the text from the first prompt layer on.",
            "choices": PLACEMENTS,
        },
    )
    prompt_layers: str | list[int] = field(
        default="search",
        metadata={"help": "'search', 'all', 'middle' (layer L // 2), 'first' (layer 0), or a list of layer indices."},
    )
    candidate_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Layers the search may use, such as 2,3,4; only with prompt_layers='search'. "
            "Default: at most ten, without the lowest sixth (and the highest, if prompts are added)."
        },
    )
    generator: str | None = field(
        default=None,
        metadata={
            "help": "What makes the prompts. add: 'bottleneck' (default) or 'static'; prepend: 'appg' (default), "
            "'mppg', 'npg', 'attention' or 'static'.",
            "choices": tuple(dict.fromkeys(name for names in GENERATORS.values() for name in names)),
        },
    )
    bottleneck_dim: int = field(
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "r, the width between the generator's projections. "
            f"Default: {DEFAULT_BOTTLENECK_DIM['add']}, in runs with task_kind='generate' {GENERATION_BOTTLENECK_DIM}; "
            f"prepend: {DEFAULT_BOTTLENECK_DIM['prepend']}."
        },
    )
    projection: str = field(
        default="linear",
        metadata={
            "help": "Projections of the generator; 'phm' has about 1/phm_dim of the parameters.",
            "choices": PROJECTIONS,
        },
    )
    phm_dim: int = field(default=4, metadata={"help": "n of the PHM projection; divides the hidden size and r."})
    activation: str = field(
        default="relu", metadata={"help": "Activation inside the generator, a name in transformers' ACT2FN."}
    )
    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "prepend: m, the number of prompt vectors at a layer. Default: 10."}
    )
    residual: bool | None = field(
        default=None,
        metadata={
            "help": "prepend, 'appg', 'mppg' and 'attention': add the generator's output to the pooled text states, "
            "so that prompts start as pieces of the text and not as noise. Default: true."
        },
    )
    mixing_rate: float | None = field(
        default=None,
        metadata={
            "help": "prepend: tau in (0, 1], the interpolation weight between the new and the propagated prompt. "
            "Default: 1."
        },
    )
    visibility: str | None = field(
        default=None,
        metadata={
            "help": "prepend: 'gated' scales attention to prompt tokens by their inclusion probability, 'always' does "
            "not. Default: gated.",
            "choices": VISIBILITIES,
        },
    )
    layers_path: str | None = field(
        default=None,
        metadata={"help": "Dotted path of the list of blocks, for a model family that sptune does not know."},
    )

    def __post_init__(self) -> None:
        if self.placement is None:
            self.placement = PLACEMENTS[0]
        _check_choice("placement", self.placement, PLACEMENTS)
        self._resolve_generator()
        self._resolve_prepend_fields()
        self._check_projection()
        self._check_layers()
        if self.layers_path is not None and not isinstance(self.layers_path, str):
            raise InputError(
                f"layers_path={shortened(self.layers_path)} is not allowed; give a dotted path, such as 'model.layers'."
            )
        if self.activation != PromptConfig.activation:
            self._check_activation()

    def _resolve_generator(self) -> None:
        generators = GENERATORS[str(self.placement)]
        if self.generator is None:
            self.generator = generators[0]
        elif self.generator not in generators:
            for other in PLACEMENTS:
                if self.generator in GENERATORS[other]:
                    raise InputError(
                        f"generator={self.generator!r} goes with placement={other!r}, not with "
                        f"placement={self.placement!r}; add placement={other!r}, or choose one of "
                        f"{', '.join(generators)}."
                    )
            _check_choice("generator", self.generator, generators)

    def _resolve_prepend_fields(self) -> None:
        """Give the fields of `prepend` their defaults, or refuse them with `add`."""
        if self.placement == "add":
            for name in PREPEND_DEFAULTS:
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name}={shortened(getattr(self, name))} is a setting of prompts in front of the text and has "
                        f"no effect with placement='add'; leave {name} out, or add placement='prepend'."
                    )
            return
        for name, default in PREPEND_DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        _check_positive("num_virtual_tokens", self.num_virtual_tokens)
        if not isinstance(self.residual, bool):
            raise InputError(f"residual={shortened(self.residual)} is not allowed; choose True or False.")
        if not (isinstance(self.mixing_rate, (int, float)) and 0 < self.mixing_rate <= 1):
            raise InputError(f"mixing_rate={shortened(self.mixing_rate)} is not allowed; choose a number in (0, 1].")
        _check_choice("visibility", self.visibility, VISIBILITIES)

    def _check_projection(self) -> None:
        _check_choice("projection", self.projection, PROJECTIONS)
        if self.bottleneck_dim is None:
            self.bottleneck_dim = DEFAULT_BOTTLENECK_DIM[str(self.placement)]
        _check_positive("bottleneck_dim", self.bottleneck_dim)
        _check_positive("phm_dim", self.phm_dim)
        if self.projection == "phm" and self.bottleneck_dim % self.phm_dim:
            raise InputError(
                f"phm_dim={self.phm_dim} does not divide bottleneck_dim={self.bottleneck_dim}; "
                "change one so that it does."
            )

    def _check_activation(self) -> None:
        from transformers.activations import ACT2FN  # takes seconds, which --help need not wait for

        if not isinstance(self.activation, str) or self.activation not in ACT2FN:
            raise InputError(f"activation={shortened(self.activation)} is not known; choose one of {sorted(ACT2FN)}.")

    def _check_layers(self) -> None:
        if isinstance(self.prompt_layers, str):
            _check_choice("prompt_layers", self.prompt_layers, NAMED_SETTINGS, " or a list of layer indices")
        else:
            self.prompt_layers = _check_indices("prompt_layers", self.prompt_layers)
        if self.candidate_layers is None:
            return
        self.candidate_layers = _check_indices("candidate_layers", self.candidate_layers)
        if self.prompt_layers != "search":
            raise InputError(
                f"candidate_layers={self.candidate_layers} has a meaning only with prompt_layers='search', "
                f"but prompt_layers={shortened(self.prompt_layers)}; leave one of them out."
            )

    @property
    def searching(self) -> bool:
        """Whether the prompt layers are searched for, with gates."""
        return self.prompt_layers == "search"


# The prompts of the paper: in front of the text, made by a pooled generator with a bottleneck.
PAPER_FIELDS: dict[str, Any] = {"placement": "prepend", "generator": "appg", "residual": False}


def _check_choice(name: str, value: object, allowed: tuple[str, ...], more: str = "") -> None:
    if value not in allowed:
        raise InputError(f"{name}={shortened(value)} is not allowed; choose one of {', '.join(allowed)}{more}.")


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}={shortened(value)} is not allowed; choose a whole number of at least 1.")
    if value > MAX_WIDTH:
        raise InputError(f"{name}={shortened(value)} is not allowed; choose at most {MAX_WIDTH:,}.")


def _check_indices(name: str, layers: object) -> list[int]:
    try:
        indices = list(layers)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(f"{name}={shortened(layers)} is not allowed; give a list of layer indices.") from None
    if len(indices) > MAX_LAYERS:
        raise InputError(f"{name} names {len(indices):,} layers; give at most {MAX_LAYERS:,}.")
    if not indices:
        raise InputError(f"{name} is empty; give at least one layer index.")
    for index in indices:
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise InputError(f"{name} holds {shortened(index)}; layer indices are whole numbers from 0.")
    if len(set(indices)) != len(indices):
        raise InputError(f"{name}={shortened(indices)} names a layer twice; name each once.")
    return sorted(indices)
