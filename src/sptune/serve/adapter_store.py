"""`AdapterStore`: the adapters that are served, in a folder that all replicas read.

An adapter is copied when it is added, so that all replicas, and those that start later, load the same files whatever
becomes of the folder it came from.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from sptune import whole_files
from sptune.errors import InputError
from sptune.runs.output_folder import TASK_FILE, file_lock
from sptune.saved_adapters.adapter_files import CONFIG_FILE, MAX_JSON, WEIGHTS_FILE, checked_file, find_folder

INDEX_FILE = "adapters.json"
# Folders of stores, in the folder for temporary files, and the file in each that its server locks.
STORE_PREFIX = "sptune-serve-"
OWNER_FILE = "server.lock"
# Names stand in paths of requests.
NAME = r"^[^/\s]([^/\x00-\x1f]*[^/\s])?$"
MAX_NAME = 200
# The files of an adapter that are copied and loaded, and their largest size in bytes.
MAX_BYTES = {CONFIG_FILE: MAX_JSON, TASK_FILE: MAX_JSON, WEIGHTS_FILE: 2**30}


class AdapterStore:
    """The adapters that are served: copies of their folders, and an index from names to copies.

    Args:
        folder: holds all this.

    Attributes:
        lock: must be held while the store is changed, and while copies are loaded, which may be removed otherwise.
        first: the copy of the first adapter, which stays: from it a new replica knows the backbone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = file_lock(folder / INDEX_FILE)
        self.first = folder / "version-1"

    @classmethod
    def create(cls, folder: Path, adapters: Mapping[str, Path]) -> AdapterStore:
        """Make a store that holds these adapter folders.

        Raises:
            InputError: a file is missing or too large.
        """
        store = cls(folder)
        store._write({}, 0)
        for name, source in adapters.items():
            store.serve(name, store.copy(source))
        return store

    def read(self) -> dict[str, Path]:
        """The adapters that are served: the copy of each, by name."""
        versions, _ = self._read()
        return {name: self._copy_of(version) for name, version in versions.items()}

    def copy(self, source: Path) -> Path:
        """Copy an adapter folder; `serve` says when it is served.

        Raises:
            InputError: a file is missing or too large.
        """
        source = find_folder(source)
        _, last = self._read()
        copy = self._copy_of(last + 1)
        whole_files.remove(copy)
        copy.mkdir(parents=True)
        for name, limit in MAX_BYTES.items():
            file = checked_file(source, name)
            if file.stat().st_size > limit:
                raise InputError(f"{file}: has {file.stat().st_size:,} bytes; at most {limit:,} are loaded.")
            shutil.copyfile(file, copy / name)
        return copy

    def serve(self, name: str, copy: Path) -> None:
        """Serve the last copy under a name, in place of the one that had it."""
        versions, last = self._read()
        before = versions.get(name)
        self._write({**versions, name: last + 1}, last + 1)
        self._remove_copy(before)

    def remove(self, name: str) -> None:
        """Serve no adapter under a name any more."""
        versions, last = self._read()
        before = versions.pop(name)
        self._write(versions, last)
        self._remove_copy(before)

    def _copy_of(self, version: int) -> Path:
        return self.folder / f"version-{version}"

    def _remove_copy(self, version: int | None) -> None:
        if version is not None and self._copy_of(version) != self.first:
            whole_files.remove(self._copy_of(version))

    def _read(self) -> tuple[dict[str, int], int]:
        """The version of each adapter, and the last version that was served."""
        index = whole_files.read_json(self.folder / INDEX_FILE)
        return index["adapters"], index["last_version"]

    def _write(self, versions: Mapping[str, int], last: int) -> None:
        whole_files.write_json(self.folder / INDEX_FILE, {"adapters": versions, "last_version": last})


@contextlib.contextmanager
def store_folder() -> Iterator[Path]:
    """A folder for the store of a server, removed at the end; those that killed servers left are removed first."""
    place = Path(tempfile.gettempdir())
    _remove_left(place)
    # It gets a name by which other servers find it when it is locked.
    made = Path(tempfile.mkdtemp(dir=place))
    with FileLock(made / OWNER_FILE):
        folder = made.rename(made.with_name(STORE_PREFIX + made.name))
        try:
            yield folder
        finally:
            whole_files.remove(folder)


def _remove_left(place: Path) -> None:
    """Remove the stores of this user's servers that have ended: nothing locks them any more."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    for folder in place.glob(STORE_PREFIX + "*"):
        owner = folder / OWNER_FILE
        # Another user, or another server that ends at this time, may be faster.
        with contextlib.suppress(OSError, Timeout):
            if folder.lstat().st_uid == user and not folder.is_symlink() and owner.is_file():
                with FileLock(owner, timeout=0):
                    whole_files.remove(folder)


def folder_within(root: Path, given: str) -> Path:
    """The adapter folder that a request names.

    Args:
        root: the folder that the adapters of requests are in.
        given: a path relative to it.

    Raises:
        InputError: the folder, or a file of the adapter, is outside of the root, be it through a link.
    """
    root = root.resolve()
    try:
        place = (root / given).resolve()
    except (OSError, ValueError):
        raise InputError(f"The folder {given!r} is not a path; name one relative to the root.") from None
    if Path(given).is_absolute() or not place.is_relative_to(root):
        raise InputError(f"The folder {given!r} is not within the root; name one by its path relative to the root.")
    try:
        folder = find_folder(place)
    except (OSError, InputError):
        raise InputError(f"The folder {given!r} in the root holds no adapter (no {CONFIG_FILE}).") from None
    for path in (folder, *(folder / name for name in MAX_BYTES)):
        if not path.resolve().is_relative_to(root):
            raise InputError(f"The folder {given!r}: {path.name} is a link out of the root; put a copy in its place.")
    return folder
