"""`ActivationCachePlan`: what a training will cache, which follows from the settings, the model and the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


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
