"""The user's settings of the activation cache, and the plan that follows from them for a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sptune.errors import InputError

GIB = 2**30
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ActivationCacheSettings:
    """How a trainer caches the activations of the frozen layers.

    Attributes:
        memory: up to this many GiB the cache is kept in memory, above it in a memory-mapped file.
        dtype: dtype of the stored states; None for that of the backbone. A shorter one saves space and is no longer
            exact.
        folder: folder of the file; None for the trainer's `output_dir`.
        keep: keep the file for later trainings on the same data, whose first trained layer is the same.

    Raises:
        InputError: a value is not allowed.
    """

    memory: float = 4.0
    dtype: str | None = None
    folder: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.memory >= 0:
            raise InputError(f"The activation cache got memory={self.memory!r}; give 0 or more GiB.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"The activation cache got dtype={self.dtype!r}; choose one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class ActivationCachePlan:
    """Whether a training uses the activation cache, and how much space that takes.

    Attributes:
        layer: the first trained layer.
        hidden_size: d.
        dtype: dtype of the stored states.
        size: bytes, if every example is seen.
        folder: folder of the file; None for memory.
        reason: why nothing is cached; None if it is.
    """

    layer: int = 0
    hidden_size: int = 0
    dtype: torch.dtype = torch.float32
    size: int = 0
    folder: Path | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"No activation cache: {self.reason}."
        where = "in memory" if self.folder is None else f"in {self.folder}"
        below = "layer 0 runs" if self.layer == 1 else f"layers 0 to {self.layer - 1} run"
        return f"Activation cache: {below} once for each text; at most {size_in_words(self.size)} {where}."


def size_in_words(size: float) -> str:
    """A number of bytes for people: 12 MB, 3.4 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
