"""Old names that stay valid for one version: each use gives a `FutureWarning` with the new name."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Give the `FutureWarning` of an old name."""
    warnings.warn(
        f"{old} was renamed to {new}; the old name will be removed in the next version.",
        FutureWarning,
        stacklevel=stacklevel,
    )


def renamed_argument(old: str, new: str) -> Callable[[Function], Function]:
    """Let a function accept a keyword argument under its old name, too."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                warn_renamed(f"{old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(Function, call)

    return decorate


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """A method under its old name."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        warn_renamed(f"{old}()", f"{new}()")
        return getattr(self, new)(*args, **kwargs)

    call.__doc__ = f"Old name of `{new}`."
    return call


def renamed_property(old: str, new: str) -> property:
    """A property under its old name."""

    def value(self: Any) -> Any:
        warn_renamed(old, new)
        return getattr(self, new)

    return property(value, doc=f"Old name of `{new}`.")
