"""Calls of modules: their arguments by name, and methods wrapped to see or change them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

# What transformers calls the cached keys and values: since 5.24, before that, and in blocks of old families.
CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")


class WrappedMethod:
    """Replaces a method of one module until `remove`.

    Unlike hooks, it also acts on direct calls such as `module.forward(...)`.

    Args:
        module: the module; its attribute `name` is replaced.
        name: the name of the method.
        around: called with this object and the arguments of each call; it calls `method`.

    Attributes:
        method: the original method.
        positions: the position of each of its named arguments.
    """

    def __init__(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        self.module = module
        self.name = name
        self.around: Callable[..., Any] | None = around
        self.own = module.__dict__.get(name)
        self.method: Callable[..., Any] = getattr(module, name)
        self.positions = argument_positions(self.method)
        functools.update_wrapper(self, self.method, assigned=("__name__", "__doc__"), updated=())
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `around`, or the method itself after `remove`."""
        if self.around is None:
            return self.method(*args, **kwargs)
        return self.around(self, *args, **kwargs)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self.positions, args, strict=False)), **kwargs} if args else kwargs

    def remove(self) -> None:
        """Restore the method; if it has been wrapped again since, stay in place and only pass calls on."""
        self.around = None
        if self.module.__dict__.get(self.name) is not self:
            return
        delattr(self.module, self.name)
        if self.own is not None:
            setattr(self.module, self.name, self.own)


def argument_positions(function: Any) -> dict[str, int]:
    """The position of each named argument of a function or bound method."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: i for i, p in enumerate(p for p in parameters if p.kind in kinds)}
