"""Files and folders that are written whole or not at all, JSON documents, and paths with "~"."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sptune.errors import InputError

PARTIAL = ".partial-"


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the user's folder in place of "~", which shells leave as it is after "=" and in quotation marks."""
    return Path(os.path.expanduser(path))  # Path.expanduser fails where there is no such user


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or fill a folder; it takes `path`'s name only if the block succeeds.

    What was written is on the disk before that, so that a power failure leaves the old content or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    remove(partial)
    try:
        yield partial
        flush(partial)
        if path.is_dir():
            retired = path.with_name(PARTIAL + "old-" + path.name)
            remove(retired)
            path.rename(retired)
            partial.rename(path)
            remove(retired)
        else:
            os.replace(partial, path)
    finally:
        remove(partial)


def flush(path: Path) -> None:
    """Wait until a file, or all files in a folder, are on the disk."""
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON document whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """One JSON document.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, ValueError, RecursionError) as error:  # the last if it is nested too deeply
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from None


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
