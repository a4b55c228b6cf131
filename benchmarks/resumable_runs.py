"""Writes the rows of a benchmark to a JSON Lines file, one line per run, and never repeats a run.

So a benchmark can be stopped and started again, and several processes can share its runs (`--part 1/2`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from sptune.runs.output_folder import append_json_line, read_json_lines

Row = dict[str, Any]
Run = TypeVar("Run")


def take_part(runs: Iterable[Run], part: str) -> list[Run]:
    """The runs of one of several processes; "1/2" is the first of two."""
    number, parts = map(int, part.split("/"))
    return list(runs)[number - 1 :: parts]


def write_missing_rows(
    output: Path, runs: Iterable[tuple[Hashable, Callable[[], Row]]], key_of: Callable[[Row], Hashable]
) -> None:
    """Do each run that has no row yet and append its row to the output.

    Args:
        output: the .jsonl file, which other processes may append to meanwhile.
        runs: the key of each run, and the function that does it and returns its row.
        key_of: the key of the run that wrote a row.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    for key, run in runs:
        if key in {key_of(row) for row in read_json_lines(output)}:
            continue
        row = run()
        append_json_line(output, row)
        print(json.dumps(row), flush=True)


def freeze(settings: dict[str, Any]) -> str:
    """Settings as part of a key."""
    return json.dumps(settings, sort_keys=True)
