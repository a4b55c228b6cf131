"""`ActivationCache`: the store of hidden states at the first trained layer, in memory or in a file.

Layers below the first one with a trained weight are frozen, so the same text gives the same states there in every
epoch. The states of each real token are stored, without padding, in memory or in a memory-mapped file.
`activation_caching` fills and reads the store during training; `caching_trainer` is a trainer for users.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sptune.training.cache_fingerprint import as_bytes
from sptune.training.cache_plan import size_in_words
from sptune.training.token_table import TokenTable

# Folders of earlier versions have this name, too.
FOLDER_PREFIX = "prefix-cache-"
ABOUT_FILE, STATES_FILE, FILLED_FILE = "about.json", "states.bin", "filled.bin"


class ActivationCache:
    """States at the first trained layer, for the real tokens of every example.

    Args:
        layer: the first trained layer.
        table: the examples' tokens.
        hidden_size: d.
        dtype: dtype of the stored states.
        folder: folder of the file, or None for memory. The file of an earlier, interrupted run with the same `key` is
            reused.
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
        if self.folder is None:
            self.states = torch.empty(total, hidden_size, dtype=dtype)
            self.filled = torch.zeros(examples, dtype=torch.bool)
            return
        about = {"key": key, "tokens": total, "examples": examples, "hidden_size": hidden_size, "dtype": str(dtype)}
        size = total * hidden_size * dtype.itemsize
        if not _holds(self.folder, about):
            _create(self.folder, about, size, examples)
        # The states are mapped for reading only and written as a file: writing to a map on a full disk kills the
        # process, while writing to a file raises an error.
        self._file = (self.folder / STATES_FILE).open("r+b", buffering=0)
        mapped = torch.from_file(str(self.folder / STATES_FILE), shared=True, size=total * hidden_size, dtype=dtype)
        self.states = mapped.view(total, hidden_size)
        self.filled = torch.from_file(str(self.folder / FILLED_FILE), shared=True, size=examples, dtype=torch.bool)

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
        else:
            self._write_file(rows, index, stored)
        self.filled[rows] = True

    def _write_file(self, rows: torch.Tensor, index: torch.Tensor, states: torch.Tensor) -> None:
        width = states.shape[1] * states.dtype.itemsize
        for part in states.split(self.table.lengths[rows].tolist()):
            start, index = int(index[0]), index[len(part) :]
            self._file.seek(start * width)
            data = as_bytes(part)
            while data:  # an unbuffered write may be a partial one
                data = data[self._file.write(data) :]

    def give_up(self) -> None:
        """Stop reading and writing."""
        self.given_up = True
        self.filled.zero_()

    def close(self, remove: bool = True) -> None:
        """Release memory and file.

        Args:
            remove: whether to delete the file; otherwise a later run with the same key reuses it.
        """
        self.states, self.filled = self.states.new_empty(0), self.filled.new_empty(0)
        if self._file is not None:
            self._file.close()
        if remove and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def cache_folders(folder: Path, but: str) -> list[Path]:
    """The cache folders that earlier trainings left in a folder, except for the one with the key `but`."""
    return [path for path in folder.glob(FOLDER_PREFIX + "*") if path.name != FOLDER_PREFIX + but[:16]]


def _holds(folder: Path, about: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8")) == about
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
    (folder / FILLED_FILE).write_bytes(bytes(examples))
    # Written last: without it, the folder is no cache.
    (folder / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
