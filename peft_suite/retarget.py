"""Points PEFT's test classes at other methods and models; what they test stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest

from sptune import SPTConfig


def retarget(parameters: dict[str, Iterable[Any]], without: Iterable[str] = ()) -> Callable[[type], type]:
    """Decorator of a subclass of one of PEFT's test classes that gives its tests other values of their parameters.

    Tests that take none of the parameters are about methods that PEFT names in them, and are left out.

    Args:
        parameters: values by the names that stand in one `pytest.mark.parametrize` of PEFT's, joined by commas.
        without: names of tests that are left out, too.
    """
    values = {names: list(given) for names, given in parameters.items()}

    def apply(test_class: type) -> type:
        for name in [name for name in dir(test_class) if name.startswith("test_")]:
            function = getattr(test_class, name)
            marks = getattr(function, "pytestmark", [])
            named = [_names(mark) for mark in marks]
            if name in without or not any(names in values for names in named):
                setattr(test_class, name, None)
                continue
            function.pytestmark = [
                pytest.mark.parametrize(names, values[names]).mark if names in values else mark
                for names, mark in zip(named, marks, strict=True)
            ]
        return test_class

    return apply


def _names(mark: pytest.Mark) -> str:
    if mark.name != "parametrize":
        return ""
    names = mark.args[0]
    return names.replace(" ", "") if isinstance(names, str) else ",".join(names)


def adapt(module: ModuleType) -> None:
    """Make a test module of PEFT's work without a hub, and tell it of SPT what it knows of PEFT's own methods."""
    if hasattr(module, "hub_online_once"):
        module.hub_online_once = lambda *args: nullcontext()
    if hasattr(module, "_skip_if_conv1d_not_supported"):
        # The kind of the linear layers in a block matters only to methods that change them.
        skip = module._skip_if_conv1d_not_supported
        module._skip_if_conv1d_not_supported = lambda model_id, cls, settings: (
            None if cls is SPTConfig else skip(model_id, cls, settings)
        )
