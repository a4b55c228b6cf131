"""`StageClock`: the seconds that each stage of a run takes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from sptune import whole_files


class StageClock:
    """Seconds by stage. The stages of an interrupted run count on when it is continued."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._path: Path | None = None

    def keep(self, path: Path, resume: bool) -> None:
        """From now on, keep the seconds in a file.

        Args:
            path: the file.
            resume: add those that an interrupted run left there.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.seconds = {name: before.get(name, 0.0) + self.seconds.get(name, 0.0) for name in before | self.seconds}

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as the stage's."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            if self._path is not None and self._path.parent.is_dir():  # not where the folder was taken away
                whole_files.write_json(self._path, self.seconds)
