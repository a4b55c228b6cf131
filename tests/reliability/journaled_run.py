"""Does a run and keeps a journal of its stages and steps, in which its last line before a kill can be read.

python journaled_run.py VERB OPTIONS.json JOURNAL
"""

import json
import sys
from pathlib import Path

from sptune.runs import run
from sptune.runs.progress import Monitor


class Journal(Monitor):
    """Writes each event as a line, unbuffered."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("ab", buffering=0)  # noqa: SIM115 (open until the process ends)

    def stage(self, title: str, steps: int | None = None) -> None:
        self.file.write(f"stage {title}\n".encode())

    def step(self) -> None:
        self.file.write(b"step\n")

    def resumed(self, done: int) -> None:
        self.file.write(f"resumed {done}\n".encode())

    def note(self, text: str) -> None:
        self.file.write(f"note {text}\n".encode())


if __name__ == "__main__":
    verb, options, journal = sys.argv[1:]
    getattr(run, verb)(**json.loads(Path(options).read_text()), monitor=Journal(journal))
