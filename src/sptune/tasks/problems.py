"""Collects what is wrong with a file, so that one report names several places at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sptune.errors import InputError

SHOWN = 10
KEPT = 1000


def shortened(value: object, most: int = 60) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def kind_of(value: object) -> str:
    """What a value is, in words that are not Python's."""
    kinds = ((bool, "truth value"), ((int, float), "number"), (str, "text"), ((list, tuple), "list"), (dict, "object"))
    return next((name for types, name in kinds if isinstance(value, types)), type(value).__name__)


class Problems:
    """What is wrong with one source of examples.

    Args:
        source: the file or Datasets split, as the user gave it.
        place: writes a line or row number with the source's name; default "source:number".
    """

    def __init__(self, source: str, place: Callable[[int], str] | None = None) -> None:
        self.source = source
        self.place = place or (lambda number: f"{source}:{number}")
        self.count = 0
        self._found: list[tuple[int, str]] = []

    def add(self, found: str, remedy: str, *, line: int = 0, field: str | None = None, **seen: Any) -> None:
        """Note a problem.

        Args:
            found: what is wrong, as a phrase.
            remedy: what to do, as a sentence.
            line: line or row number; 0 for the whole file.
            field: the column.
            **seen: `value`, what stood there.
        """
        self.count += 1
        if len(self._found) < KEPT:
            where = self.place(line) if line else self.source
            where += f", field {field!r}" if field is not None else ""
            where += f", value {shortened(seen['value'])}" if "value" in seen else ""
            self._found.append((line, f"{where}: {found}. {remedy}"))

    def __str__(self) -> str:
        if self.count == 1:
            return self._found[0][1]
        lines = [text for _, text in sorted(self._found, key=lambda found: found[0])[:SHOWN]]
        head = f"{self.source} has {self.count} problems" + (f", the first {SHOWN}:" if self.count > SHOWN else ":")
        return "\n  ".join([head, *lines])


def raise_if_any(reports: list[Problems]) -> None:
    """Raise one InputError with all reports that found something."""
    found = [str(report) for report in reports if report.count]
    if found:
        raise InputError("\n".join(found))
