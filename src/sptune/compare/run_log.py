"""The file with the rows of a study: one JSON line for each run, written by any number of processes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from sptune import whole_files
from sptune.compare.run_spec import Row
from sptune.compare.study_run import FAILED
from sptune.errors import InputError, SptuneError
from sptune.runs import output_folder as outputs

ROWS_FILE = "runs.jsonl"
LOCKS_FOLDER = "locks"
# In the folder of locks; a folder that taking a lock has made in place of a removed one lacks it.
MARKER_FILE = "study"
# Holds a folder for each run while it is under way.
RUNS_FOLDER = "runs"


def read_rows(folder: Path) -> list[Row]:
    """The rows in a study's folder; of a run that was done again the last, in the place of the first.

    Raises:
        InputError: the file is of something else.
    """
    try:
        return list({row["run"]: row for row in outputs.read_json_lines(folder / ROWS_FILE)}.values())
    except (ValueError, TypeError, KeyError):
        path = folder / ROWS_FILE
        raise InputError(f"{path}: holds something else than the runs of a study; name another folder.") from None


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
        self._locks = folder / LOCKS_FOLDER
        self._locks.mkdir(parents=True, exist_ok=True)
        self._marker = self._locks / MARKER_FILE
        self._marker.touch()
        self.lock = outputs.file_lock(self.path)

    def read(self) -> list[Row]:
        """All rows; see `read_rows`."""
        self._check_folder()
        return read_rows(self.folder)

    def append(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns."""
        self._check_folder()
        outputs.append_json_line(self.path, row)

    def forget_failed(self, runs: Collection[str]) -> None:
        """Take those of these runs out that failed, and that no other process has done since, to be done again."""
        with self.lock:
            kept = [row for row in self.read() if row["run"] not in runs or row["state"] != FAILED]
            outputs.write_json_lines(self.path, kept)

    def claim(self, run: str) -> FileLock | None:
        """The lock of a run, to be released by the caller; None if another process is at work on it."""
        lock = FileLock(self._locks / f"{run}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        if not self._is_there():  # checked now, because taking the lock makes the folder
            lock.release()
            whole_files.remove(Path(lock.lock_file))
            self._refuse()
        return lock

    def _is_there(self) -> bool:
        """Whether the folder is that of the study, and none that was made in its place."""
        return self._marker.is_file() or self.path.is_file()

    def _check_folder(self) -> None:
        if not self._is_there():
            self._refuse()

    def _refuse(self) -> NoReturn:
        """Refuse to go on in a new folder in place of the study's."""
        # A lock that was taken, or a run that was under way, has made the folders that it writes into again.
        for made in (self._locks, self.folder / RUNS_FOLDER, self.folder):
            with contextlib.suppress(OSError):  # it is not there, or something else is in it
                made.rmdir()
        raise SptuneError(
            f"{self.folder}: was removed or moved while the comparison was at work. Start it again; if the folder "
            "was moved, with --output where it is now."
        )
