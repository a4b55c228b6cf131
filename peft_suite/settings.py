"""What PEFT's tests run with: SPT in several settings, and LoRA as the control, which all of them must pass."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from sptune import SPTConfig

_IN_FRONT = {"placement": "prepend"}
SPT_SETTINGS: dict[str, dict[str, Any]] = {
    "add": {"prompt_layers": [1, 3]},
    "add-search": {"projection": "phm"},
    # With as many prompt vectors as the texts have tokens, those of "appg" would begin as copies of the tokens, which
    # attention without positions does not notice.
    "search": {**_IN_FRONT, "num_virtual_tokens": 6},
    "appg": {**_IN_FRONT, "num_virtual_tokens": 6, "prompt_layers": [1, 3]},
    "static": {**_IN_FRONT, "prompt_layers": "all", "generator": "static"},
    "attention": {
        **_IN_FRONT,
        "prompt_layers": [1, 2],
        "generator": "attention",
        "projection": "phm",
        "mixing_rate": 0.5,
    },
    "npg": {**_IN_FRONT, "num_virtual_tokens": 6, "prompt_layers": "middle", "generator": "npg"},
}
LORA_SETTINGS = {"r": 8, "lora_alpha": 32, "target_modules": None, "lora_dropout": 0.05, "bias": "none"}
METHODS = {f"SPT-{name}": (SPTConfig, settings) for name, settings in SPT_SETTINGS.items()}
METHODS["LoRA"] = (LoraConfig, LORA_SETTINGS)


def methods(**common: Any) -> list[Any]:
    """Cases of a configuration class and its keyword arguments."""
    return [pytest.param(cls, {**settings, **common}, id=name) for name, (cls, settings) in METHODS.items()]


def configurations(**common: Any) -> list[Any]:
    """Cases of a configuration."""
    return [pytest.param(cls(**settings, **common), id=name) for name, (cls, settings) in METHODS.items()]
