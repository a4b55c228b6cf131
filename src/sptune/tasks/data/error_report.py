"""Collects the errors of a data source, so that one message names several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sptune.errors import InputError

MAX_SHOWN = 10
MAX_KEPT = 1000
NOT_GIVEN = object()


def shorten(value: object, max_length: int = 60) -> str:
    """Format a value for a message, cut to `max_length` characters."""
    text = repr(value)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def describe_type(value: object) -> str:
    """The type of a value in plain words, such as "number" for an int."""
    kinds = ((bool, "truth value"), ((int, float), "number"), (str, "text"), ((list, tuple), "list"), (dict, "object"))
    return next((name for types, name in kinds if isinstance(value, types)), type(value).__name__)


class ErrorReport:
    """The errors found in one data source.

    Args:
        source: the file or split, as the user named it.
        locate: formats a line or row number together with the source. Default: "source:number".
    """

    def __init__(self, source: str, locate: Callable[[int], str] | None = None) -> None:
        self.source = source
        self.locate = locate or (lambda number: f"{source}:{number}")
        self.count = 0
        self._messages: list[tuple[int, str]] = []

    def add(
        self, error: str, remedy: str, *, line: int = 0, field: str | None = None, value: object = NOT_GIVEN
    ) -> None:
        """Add an error.

        Args:
            error: what is wrong, as a phrase.
            remedy: what the user can do, as a sentence.
            line: the line or row number; 0 for the whole source.
            field: the column.
            value: the value found there.
        """
        self.count += 1
        if len(self._messages) < MAX_KEPT:
            location = self.locate(line) if line else self.source
            location += f", field {field!r}" if field is not None else ""
            location += f", value {shorten(value)}" if value is not NOT_GIVEN else ""
            self._messages.append((line, f"{location}: {error}. {remedy}"))

    def __str__(self) -> str:
        if self.count == 1:
            return self._messages[0][1]
        lines = [text for _, text in sorted(self._messages, key=lambda message: message[0])[:MAX_SHOWN]]
        more = f", the first {MAX_SHOWN}" if self.count > MAX_SHOWN else ""
        return "\n  ".join([f"{self.source} has {self.count} problems{more}:", *lines])


def raise_errors(reports: Iterable[ErrorReport]) -> None:
    """Raise one `InputError` that lists the errors of all reports; do nothing if there are none."""
    messages = [str(report) for report in reports if report.count]
    if messages:
        raise InputError("\n".join(messages))
