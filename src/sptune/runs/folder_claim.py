"""`FolderClaim`: a run's claim on its output folder, which keeps other runs out as long as the run lasts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sptune.errors import InputError, SptuneError
from sptune.runs.output_folder import RUN_FILES, check_folder
from sptune.whole_files import PARTIAL, remove

# Held by the run that writes into the folder, and removed when it ends.
LOCK_FILE = ".run.lock"


class FolderClaim:
    """The claim on an output folder; it ends with the process at the latest.

    Args:
        folder: the output folder.

    Raises:
        InputError: the folder cannot be written to, or another run writes into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / LOCK_FILE
        self._lock = FileLock(self._file, timeout=0)
        try:
            self._inode = self._lock_file()
        except Timeout:
            raise InputError(
                f"{folder}: another run is writing into this folder; wait until it ends, or name another folder."
            ) from None
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}); name another folder.") from None

    def _lock_file(self) -> int:
        """Lock the file in the folder, and not one that the run before removed meanwhile; returns its number."""
        while True:
            with self._file.open("ab") as opened:  # as long as it is open, no other file gets its number
                self._lock.acquire()
                if self._inode_there() == (number := os.fstat(opened.fileno()).st_ino):
                    return number
            self._lock.release(force=True)

    def check(self) -> None:
        """Refuse to go on in a folder that is no longer there.

        Raises:
            SptuneError: the folder was removed or moved, or another run has claimed a new one of its name.
        """
        if not self._holds():
            raise SptuneError(
                f"{self.folder}: was removed or moved while the run was writing into it. Start the run again, or "
                "resume it where the folder is now (--resume)."
            )

    def end(self) -> None:
        """Let other runs write into the folder."""
        if self._holds():
            remove(self._file)
        self._lock.release(force=True)

    def clear(self) -> None:
        """Remove the run that the folder holds; anything else in it stays."""
        for name in RUN_FILES:
            remove(self.folder / name)

    def take_back(self) -> None:
        """Leave the folder of a run that began nothing as it was, free for the next call."""
        self.end()
        with contextlib.suppress(OSError):  # something else is in it
            self.folder.rmdir()

    def _holds(self) -> bool:
        """Whether the folder still has the file that this claim locks; the file's number is not given twice."""
        return self._inode_there() == self._inode

    def _inode_there(self) -> int | None:
        try:
            return self._file.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            return None


class CheckClaim(TrainerCallback):
    """Ends a training whose output folder was removed, before a checkpoint makes a new folder of that name.

    Args:
        claim: of the run.
    """

    def __init__(self, claim: FolderClaim) -> None:
        self.claim = claim

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After each step."""
        self.claim.check()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After an evaluation, which can take long, and before the checkpoint that follows."""
        self.claim.check()


def claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> FolderClaim:
    """Keeps other runs out of `folder`; a run that it holds stays until `FolderClaim.clear`.

    Args:
        folder: the output folder.
        resume: the folder holds a run, which is continued.
        overwrite: the folder may hold a run.

    Returns:
        The claim, which keeps other runs out until its end.

    Raises:
        InputError: as `check_folder`, the folder cannot be made or written to, or another run writes into it.
    """
    check_folder(folder, resume=resume, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be made ({error.strerror}); name another.") from None
    claim = FolderClaim(folder)
    # Another run may have begun and ended between the check and the lock.
    check_folder(folder, resume=resume, overwrite=overwrite)
    for leftover in folder.glob(PARTIAL + "*"):
        remove(leftover)
    return claim
