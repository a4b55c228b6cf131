"""Errors of the operating system, such as a full disk or too little memory, in words."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

MEMORY = (
    "Out of memory; choose a smaller batch (--batch-size), shorter texts (--max-length) or --dtype bfloat16, or allow "
    "the process more memory (ulimit -v)."
)
THREADS = "The system starts no more threads; allow the process more memory or threads (ulimit -v, ulimit -u)."
# Parts of messages of PyTorch, safetensors and the dynamic linker, which raise their own errors instead of Python's.
MEMORY_PARTS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
)
# Of the address space that a process may use: above it, an allocation of ordinary size can fail.
NEARLY_ALL = 0.95
THREAD_PARTS = ("can't start new thread", "failed to create thread")
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
        if _is_of_memory(one, text):
            return MEMORY
        if any(part in text for part in THREAD_PARTS):
            return THREADS
        if isinstance(one, OSError) and one.strerror:
            places = " and ".join(str(place) for place in (one.filename, one.filename2) if place is not None)
            return f"{places}: {one.strerror}." if places else f"{one.strerror}."
        if any(part in text for part in WRITE_PARTS):
            return f"A file could not be written ({text.splitlines()[0]}). Is the disk full?"
    if _is_at_its_limit():  # where libraries fail with errors that say nothing of memory
        return f"{type(error).__name__}: {error}. {MEMORY}"
    return None


def _is_of_memory(error: BaseException, text: str) -> bool:
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return no_memory or isinstance(error, MemoryError) or any(part in text for part in MEMORY_PARTS)


def _is_at_its_limit() -> bool:
    """Whether the process has filled the address space that it may use (ulimit -v), as far as the system tells."""
    with contextlib.suppress(ImportError, OSError, ValueError, IndexError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        status = Path("/proc/self/status").read_text().partition("VmPeak:")[2]
        return limit != resource.RLIM_INFINITY and int(status.split()[0]) * 1024 >= NEARLY_ALL * limit
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that caused it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__
