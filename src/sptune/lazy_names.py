"""Names of a package that are imported when they are first used (PEP 562), so that the package itself is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from sptune.renamed import warn_renamed


def lazy_names(
    package: str, modules: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        modules: for each name that it offers, the module that defines it.
        renamed: new names of old ones, which give a `FutureWarning`.
    """

    def get_attribute(name: str) -> Any:
        if renamed is not None and name in renamed:
            warn_renamed(name, renamed[name])
            return get_attribute(renamed[name])
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get_attribute, list_names
