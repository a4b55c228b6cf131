"""Writes the rows of a benchmark to a JSON Lines file, one line per run, and never repeats a run.

So a benchmark can be stopped and started again, and several processes can share its runs (`--part 1/2`). A benchmark
with one JSON file instead goes on with it through `begun_results`.
"""

from __future__ import annotations

import json
import sys
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


def begun_results(output: Path, empty: Row, **missing: Any) -> Row:
    """The results that an interrupted benchmark left in its file, or empty ones without a file.

    Ends the process if they are of another machine, other versions or other settings: both in one file would be mixed
    up, and measurements are not overwritten.

    Args:
        output: the .json file.
        empty: results without a measurement: the "machine", settings that all measurements share, and empty lists.
        **missing: settings of files that do not name them.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists():
        return empty
    begun = {**missing, **json.loads(output.read_text(encoding="utf-8"))}
    before, now = ({**one["machine"], **{name: one[name] for name in empty}} for one in (begun, empty))
    differing = [
        f"{name} {before.get(name)} instead of {value}"
        for name, value in now.items()
        if name != "machine" and not isinstance(value, list) and before.get(name) != value
    ]
    if differing:
        sys.exit(f"{output} holds other measurements ({', '.join(differing)}); name another file, or move this one.")
    return begun
