"""Does a run and keeps a journal of its stages and steps, in which its last line before a kill can be read.

python journaled_run.py VERB OPTIONS.json JOURNAL
"""

import json
import sys
from pathlib import Path
from typing import Any

from sptune.compare import compare
from sptune.compare.workers import Watcher
from sptune.runs import run
from sptune.runs.progress import Monitor


class Journal(Monitor, Watcher):
    """Writes each event as a line, unbuffered."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("ab", buffering=0)  # noqa: SIM115 (open until the process ends)
        self.write("start")

    def write(self, *words: object) -> None:
        """Add a line."""
        self.file.write((" ".join(map(str, words)) + "\n").encode())

    def stage(self, title: str, steps: int | None = None) -> None:
        self.write("stage", title)

    def step(self) -> None:
        self.write("step")

    def resumed(self, done: int) -> None:
        self.write("resumed", done)

    def note(self, text: str) -> None:
        self.write("note", text)

    def noted(self, task: str, note: str) -> None:
        self.write("note", note)

    def began(self, spec: Any) -> None:
        self.write("began", spec.id)

    def changed(self, rows: list[dict[str, Any]]) -> None:
        self.write("there", *(row["run"] for row in rows))


if __name__ == "__main__":
    verb, file, journal = sys.argv[1:]
    options = json.loads(Path(file).read_text())
    if verb == "compare":
        compare(**options, watcher=Journal(journal))
    else:
        getattr(run, verb)(**options, monitor=Journal(journal))
