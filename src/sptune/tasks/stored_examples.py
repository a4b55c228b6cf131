"""StoredExamples: a sequence of examples in a temporary file instead of in memory."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np

T = TypeVar("T")


@contextlib.contextmanager
def temporary_files() -> Iterator[None]:
    """Names the folder for temporary files, and the remedy, in an error of writing there, such as a full disk.

    Raises:
        OSError: that error.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; set TMPDIR to a folder with more room"
        raise OSError(error.errno, reason, tempfile.gettempdir()) from error


class StoredExamples(Sequence[T]):
    """Examples in a temporary file, each read when it is used: 16 bytes of memory for each, however long its texts.

    As Python objects, a million short texts take most of a gigabyte. The file is in the folder for temporary files
    (TMPDIR). It has no name, so the operating system deletes it with the process, also after a crash.
    """

    def __init__(self, file: _ExampleFile[T], numbers: np.ndarray) -> None:
        self._file = file
        self._numbers = numbers  # of the examples in the file, those that belong to this sequence

    @classmethod
    def write(cls, examples: Iterable[T]) -> StoredExamples[T]:
        """The same examples in a new file; `examples` may be a generator."""
        file = _ExampleFile(examples)
        return cls(file, np.arange(len(file)))

    def select(self, places: Sequence[int] | np.ndarray) -> StoredExamples[T]:
        """The examples at some places of this sequence, in the same file."""
        return StoredExamples(self._file, self._numbers[np.asarray(places, dtype=np.int64)])

    def joined(self, other: StoredExamples[T]) -> StoredExamples[T]:
        """These and other examples of the same file."""
        assert other._file is self._file
        return StoredExamples(self._file, np.concatenate([self._numbers, other._numbers]))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._file.read(number) for number in self._numbers[place]]
        return self._file.read(self._numbers[place])

    def __iter__(self) -> Iterator[T]:
        return map(self._file.read, self._numbers)

    def __eq__(self, other: Any) -> bool:
        """Whether the other is a sequence of equal examples."""
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class _ExampleFile(Generic[T]):
    """Pickled examples, one after the other; threads can read at the same time."""

    def __init__(self, examples: Iterable[T]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the examples are used)
        weakref.finalize(self, _close, self._file)
        self._lock = threading.Lock()
        self._ends = np.fromiter(itertools.accumulate(map(self._append, examples)), np.int64)
        with temporary_files():
            self._file.flush()

    def __len__(self) -> int:
        return len(self._ends)

    def _append(self, example: T) -> int:
        """Write an example; returns the number of its bytes."""
        with temporary_files():
            return self._file.write(pickle.dumps(example, pickle.HIGHEST_PROTOCOL))

    def read(self, number: int) -> T:
        """An example by its number in the file."""
        start, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        with self._lock:
            self._file.seek(start)
            record = self._file.read(end - start)
        example: T = pickle.loads(record)
        return example


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what could not be written was an error before
        file.close()
