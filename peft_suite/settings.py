"""What PEFT's tests run with: SPT in several settings, and LoRA as the control, which all of them must pass."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig

from sptune import SPTConfig

# With as many prompt vectors as the texts have tokens, those of "appg" would begin as copies of the tokens, which
# attention without positions does not notice.
SPT_SETTINGS: dict[str, dict[str, Any]] = {
    "search": {"num_virtual_tokens": 6},
    "appg": {"num_virtual_tokens": 6, "prompt_layers": [1, 3]},
    "static": {"prompt_layers": "all", "generator": "static"},
    "attention": {"prompt_layers": [1, 2], "generator": "attention", "projection": "phm", "mixing_rate": 0.5},
    "npg": {"num_virtual_tokens": 6, "prompt_layers": "middle", "generator": "npg"},
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
