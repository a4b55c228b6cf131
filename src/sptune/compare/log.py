"""The rows of a study: one JSON line a run, written by any number of processes, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock, Timeout

from sptune.compare.study import Row

ROWS_FILE = "runs.jsonl"


def read_rows(folder: Path) -> list[Row]:
    """The rows in a study's folder; of a run that was done again the last, in the place of the first."""
    path = folder / ROWS_FILE
    rows: dict[str, Row] = {}
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):  # what is not was cut off while it was written
            row = json.loads(line)
            rows[row["run"]] = row
    return list(rows.values())


class RunLog:
    """The file of rows in a study's folder, and who is at work on which run.

    Locks belong to processes: one that dies, however, leaves none behind.

    Args:
        folder: the study's.

    Attributes:
        lock: held by whoever writes a file that all processes of the study share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ROWS_FILE
        self._locks = folder / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self._locks / "rows.lock")

    def read(self) -> list[Row]:
        """All rows; see `read_rows`."""
        return read_rows(self.folder)

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns."""
        with self.lock:
            whole = self._without_torn_line()
            with self.path.open("ab") as file:
                file.truncate(whole)
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())

    def forget(self, runs: Collection[str]) -> None:
        """Take the rows of these runs out, so that they are done again."""
        with self.lock:
            kept = [row for row in self.read() if row["run"] not in runs]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
            os.replace(partial, self.path)

    def claim(self, run: str) -> FileLock | None:
        """The lock of a run, to be released by the caller; None if another process is at work on it."""
        lock = FileLock(self._locks / f"{run}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def _without_torn_line(self) -> int:
        """Bytes of the file up to the end of its last whole line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        return content.rfind(b"\n") + 1
