"""`SPTConfig`: the configuration of SPT as PEFT takes it, and which layers it means in a backbone."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils import PeftType

from sptune.errors import InputError, shortened
from sptune.prompt_config import PAPER_FIELDS, PromptConfig
from sptune.registration import PEFT_TYPE

MAX_CANDIDATES = 10
# Of modules to save.
MAX_NAMES = 10_000


@dataclass
class SPTConfig(PromptConfig, PeftConfig):
    """Configuration of Selective Prompt Tuning: the fields of `PromptConfig`, those of PEFT, and two more.

    Raises:
        ValueError: a field's value is not allowed; the message names the field, the value and the values allowed.
    """

    init_weights: bool = field(
        default=True,
        metadata={
            "help": "False draws at random what is zero at first, so that a fresh adapter changes the output; for "
            "tests, as in PEFT."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules besides the prompts to train and save, such as a new head: ends of their paths in "
            "the backbone."
        },
    )

    def __post_init__(self) -> None:
        PeftConfig.__post_init__(self)
        if self.placement is None and self.peft_type is not None:
            # Only a file names the PEFT type, and one without a placement is from before there were two.
            self.placement = "prepend"
        self.peft_type = PeftType(PEFT_TYPE)
        # PEFT reads this attribute on every tuner's configuration; which blocks it names follows from the layers.
        self.target_modules: set[str] | None = None
        PromptConfig.__post_init__(self)
        if not isinstance(self.init_weights, bool):
            raise InputError(f"init_weights={shortened(self.init_weights)} is not allowed; choose True or False.")
        if self.modules_to_save is not None:
            self.modules_to_save = _check_names("modules_to_save", self.modules_to_save)

    @classmethod
    def from_prompts(cls, prompts: PromptConfig, **fields: Any) -> SPTConfig:
        """The configuration of these prompts.

        Args:
            prompts: what it takes over.
            fields: of this class, that are added or differ.
        """
        own = {one.name: getattr(prompts, one.name) for one in dataclasses.fields(PromptConfig)}
        return cls(**{**own, **fields})

    @classmethod
    def paper(cls, **fields: Any) -> SPTConfig:
        """The prompts of the paper: in front of the text, made by a pooled generator with a bottleneck (`appg`).

        Args:
            fields: of this class, that differ from the paper's.
        """
        return cls(**{**PAPER_FIELDS, **fields})


def default_candidates(num_layers: int, placement: str) -> list[int]:
    """The default layers that a search chooses from.

    All but the lowest sixth: the lower the first prompt, the less can be cached, and with prompts in front of the text
    no layer did worse than layer 0 in any table (docs/results/search.md). For added prompts also without the highest
    sixth, which does worst (benchmarks/defaults.py). If more than 10 layers are left, every n-th of them: candidates
    share the steps of a search, and neighbors in a deep backbone are worth much the same.

    Args:
        num_layers: of the backbone.
        placement: of the prompts.
    """
    lowest = num_layers // 6
    end = num_layers - lowest if placement == "add" else num_layers
    return list(range(lowest, end, max(1, math.ceil((end - lowest) / MAX_CANDIDATES))))


def resolve_prompt_layers(config: PromptConfig, num_layers: int) -> list[int]:
    """The layer indices, ascending, that carry a generator in a backbone of `num_layers` blocks.

    Raises:
        InputError: a layer index does not exist in the backbone.
    """
    if config.prompt_layers == "search":
        layers = config.candidate_layers or default_candidates(num_layers, str(config.placement))
    elif isinstance(config.prompt_layers, str):
        layers = {"all": list(range(num_layers)), "middle": [num_layers // 2], "first": [0]}[config.prompt_layers]
    else:
        layers = config.prompt_layers
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise InputError(
            f"prompt_layers/candidate_layers name layer {shortened(beyond[0])}, but the backbone has {num_layers} "
            f"layers; allowed are 0 to {num_layers - 1}."
        )
    return sorted(layers)


def _check_names(name: str, given: object) -> list[str]:
    if isinstance(given, str):
        raise InputError(
            f"{name}={shortened(given)} is not allowed; give a list of names, such as [{shortened(given)}]."
        )
    names = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    if len(names) > MAX_NAMES:
        raise InputError(f"{name} has {len(names):,} names; give at most {MAX_NAMES:,}.")
    for one in names:
        if not isinstance(one, str) or not one:
            raise InputError(f"{name} holds {shortened(one)}; give a list of names of modules, such as ['classifier'].")
    return [str(one) for one in names]
