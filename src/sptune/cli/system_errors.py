"""Errors of the operating system, such as a full disk or too little memory, in words."""

from __future__ import annotations

from collections.abc import Iterator

MEMORY = "Out of memory; choose a smaller batch (--batch-size), shorter texts (--max-length) or --dtype bfloat16."
# What messages of PyTorch and safetensors contain, which raise their own errors instead of Python's.
MEMORY_PARTS = ("can't allocate memory", "not enough memory", "out of memory")
WRITE_PARTS = (
    "PytorchStreamWriter failed",
    "unexpected pos",
    "iostream error",
    "file write failed",
    "I/O error",
    "No space left on device",
)


def in_words(error: BaseException) -> str | None:
    """What to tell of an error that the operating system caused; None if it has another cause."""
    for one in _chain(error):
        text = str(one)
        if isinstance(one, MemoryError) or any(part in text for part in MEMORY_PARTS):
            return MEMORY
        if isinstance(one, OSError) and one.strerror:
            places = " and ".join(str(place) for place in (one.filename, one.filename2) if place is not None)
            return f"{places}: {one.strerror}." if places else f"{one.strerror}."
        if any(part in text for part in WRITE_PARTS):
            return f"A file could not be written ({text.splitlines()[0]}). Is the disk full?"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that caused it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
