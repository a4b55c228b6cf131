"""`ActivationCacheSettings`: the user's settings of the activation cache."""

from __future__ import annotations

from dataclasses import dataclass

from sptune.errors import InputError

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
