"""`ActivationCache`: the store of hidden states at the first trained layer, in memory or in a file.

Layers below the first one with a trained weight are frozen, so the same text gives the same states there in every
epoch. The states of each real token are stored, without padding, in memory or in a memory-mapped file.
`activation_caching` fills and reads the store during training; `caching_trainer` is a trainer for users.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch

from sptune.training.caching.cache_fingerprint import as_bytes
from sptune.training.caching.cache_plan import size_in_words
from sptune.training.caching.token_table import TokenTable

# Folders of earlier versions have this name, too.
FOLDER_PREFIX = "prefix-cache-"
ABOUT_FILE, STATES_FILE, CHECKSUMS_FILE = "about.json", "states.bin", "checksums.bin"


class ActivationCache:
    """States at the first trained layer, for the real tokens of every example.

    Args:
        layer: the first trained layer.
        table: the examples' tokens.
        hidden_size: d.
        dtype: dtype of the stored states.
        folder: folder of the file, or None for memory. The file of an earlier, interrupted run with the same `key` is
            reused. States that do not match their checksums, such as zeros after a power failure, are not.
        key: hash of everything the states depend on; see `fingerprint`.

    Raises:
        OSError: the disk is full or cannot be written to.
    """

    def __init__(
        self,
        layer: int,
        table: TokenTable,
        hidden_size: int,
        dtype: torch.dtype,
        folder: Path | None = None,
        key: str = "",
    ) -> None:
        self.layer = layer
        self.table = table
        self.given_up = False
        total, examples = len(table.tokens), len(table.lengths)
        self._file: Any = None
        self.folder = None if folder is None else folder / (FOLDER_PREFIX + key[:16])
        # The checksum of each example's states; 0 for an example that is not stored yet.
        self._checksums = torch.zeros(examples, dtype=torch.int64)
        if self.folder is None:
            self.states = torch.empty(total, hidden_size, dtype=dtype)
            return
        about = {"key": key, "tokens": total, "examples": examples, "hidden_size": hidden_size, "dtype": str(dtype)}
        size = total * hidden_size * dtype.itemsize
        exists = _holds(self.folder, about, size)
        if not exists:
            _create(self.folder, about, size, examples)
        # The states are mapped for reading only and written as a file: writing to a map on a full disk kills the
        # process, while writing to a file raises an error.
        self._file = (self.folder / STATES_FILE).open("r+b", buffering=0)
        mapped = torch.from_file(str(self.folder / STATES_FILE), shared=True, size=total * hidden_size, dtype=dtype)
        self.states = mapped.view(total, hidden_size)
        checksums = str(self.folder / CHECKSUMS_FILE)
        self._checksums = torch.from_file(checksums, shared=True, size=examples, dtype=torch.int64)
        if exists:
            self._forget_damaged()

    def holds(self, rows: torch.Tensor) -> bool:
        """Whether the states of these examples (batch,) are stored."""
        return bool(self._checksums[rows].all())

    def write(self, rows: torch.Tensor, index: torch.Tensor, states: torch.Tensor) -> None:
        """Store the states of some examples.

        Args:
            rows: (batch,) the examples.
            index: (tokens,) where each token stands in the table, example after example.
            states: (tokens, d).

        Raises:
            OSError: the disk is full.
        """
        stored = states.to(self.states.dtype)
        if not bool(stored.isfinite().all()) and bool(states.isfinite().all()):
            raise OSError(f"the states are too large for {self.states.dtype}")
        if self._file is None:
            self.states[index] = stored
            self._checksums[rows] = 1
        else:
            self._write_file(rows, stored)

    def _write_file(self, rows: torch.Tensor, states: torch.Tensor) -> None:
        width = states.shape[1] * states.dtype.itemsize
        for row, part in zip(rows.tolist(), states.split(self.table.lengths[rows].tolist()), strict=True):
            self._file.seek(int(self.table.starts[row]) * width)
            data = as_bytes(part)
            checksum = _checksum(data)
            while data:  # an unbuffered write may be a partial one
                data = data[self._file.write(data) :]
            self._checksums[row] = checksum

    def _forget_damaged(self) -> None:
        """Forget states that are not those that were written: the disk may have lost them when the power failed."""
        for row in self._checksums.nonzero().flatten().tolist():
            start, length = int(self.table.starts[row]), int(self.table.lengths[row])
            if _checksum(as_bytes(self.states[start : start + length])) != int(self._checksums[row]):
                self._checksums[row] = 0

    def give_up(self) -> None:
        """Stop reading and writing."""
        self.given_up = True
        self._checksums.zero_()

    def close(self, remove: bool = True) -> None:
        """Release memory and file.

        Args:
            remove: whether to delete the file; otherwise a later run with the same key reuses it.
        """
        self.states, self._checksums = self.states.new_empty(0), self._checksums.new_empty(0)
        if self._file is not None:
            self._file.close()
        if remove and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def cache_folders(folder: Path, but: str) -> list[Path]:
    """The cache folders that earlier trainings left in a folder, except for the one with the key `but`."""
    return [path for path in folder.glob(FOLDER_PREFIX + "*") if path.name != FOLDER_PREFIX + but[:16]]


def _checksum(data: memoryview) -> int:
    """The CRC-32 of some bytes, plus 1 so that it is never 0."""
    return zlib.crc32(data) + 1


def _holds(folder: Path, about: dict[str, Any], size: int) -> bool:
    """Whether a folder is a whole cache of this kind."""
    sizes = {STATES_FILE: size, CHECKSUMS_FILE: 8 * about["examples"]}
    try:
        found = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
        return found == about and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _create(folder: Path, about: dict[str, Any], size: int, examples: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        shutil.rmtree(folder)
        raise OSError(f"{size_in_words(size)} are needed in {folder.parent}, where {size_in_words(free)} are free")
    with (folder / STATES_FILE).open("wb") as file:
        file.truncate(size)
    (folder / CHECKSUMS_FILE).write_bytes(bytes(8 * examples))
    # Written last: without it, the folder is no cache.
    (folder / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
