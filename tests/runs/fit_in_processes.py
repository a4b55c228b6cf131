"""Runs of a file, one after another; started by a test in several processes.

The file is a JSON list of `[options, last step]`; a run whose last step is not null ends there as if interrupted.
"""

import json
import sys
from pathlib import Path
from typing import Any

from sptune.runs.processes import leave_processes
from sptune.runs.progress import Monitor
from sptune.runs.run import fit


class Interruption(Monitor):
    """Ends a run after some steps of all its stages together."""

    def __init__(self, last_step: int) -> None:
        self.left = last_step

    def step(self) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def fit_all(runs: list[tuple[dict[str, Any], int | None]]) -> None:
    for options, last_step in runs:
        try:
            fit(**options, monitor=None if last_step is None else Interruption(last_step))
        except KeyboardInterrupt:
            assert last_step


if __name__ == "__main__":
    fit_all(json.loads(Path(sys.argv[1]).read_text()))
    leave_processes()
