"""Collects the errors of a data source, so that one message names several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sptune.errors import InputError

MAX_SHOWN = 10
# More errors of one kind than this are shown as one.
MAX_ALIKE = 3
MAX_KEPT = 1000
NOT_GIVEN = object()
# The error and the remedy for a text that no file can hold.
NOT_UNICODE = "half a surrogate pair, which is not a character", "Write the file again as UTF-8."


def shorten(value: object, max_length: int = 60) -> str:
    """Format a value for a message, cut to `max_length` characters."""
    text = repr(value)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def describe_type(value: object) -> str:
    """The type of a value in plain words, such as "number" for an int."""
    kinds = ((bool, "truth value"), ((int, float), "number"), (str, "text"), ((list, tuple), "list"), (dict, "object"))
    return next((name for types, name in kinds if isinstance(value, types)), type(value).__name__)


def a_value(value: object) -> str:
    """The type of a value with its article, such as "an object" for a dict."""
    name = describe_type(value)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def or_remove(remedy: str, line: int) -> str:
    """A remedy as a sentence, which also offers to remove the line if there is one: a request has none."""
    return f"{remedy}, or remove the line." if line else f"{remedy}."


@dataclass(frozen=True)
class _Error:
    """One error; its fields are the arguments of `ErrorReport.add`."""

    error: str
    remedy: str
    line: int
    field: str | None
    value: object

    @property
    def kind(self) -> tuple[str, str, str | None]:
        """What errors with the same cause share."""
        return self.error, self.remedy, self.field


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
        self._errors: list[_Error] = []

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
        if len(self._errors) < MAX_KEPT:
            self._errors.append(_Error(error, remedy, line, field, value))

    def __str__(self) -> str:
        if self.count == 1:
            return self._message(self._errors[0])
        alike: dict[tuple[str, str, str | None], list[_Error]] = {}
        for error in sorted(self._errors, key=lambda error: error.line):
            alike.setdefault(error.kind, []).append(error)
        shown: list[tuple[int, str]] = []
        for errors in alike.values():
            if len(errors) > MAX_ALIKE:
                shown.append((errors[0].line, f"{self._message(errors[0])} {_others(errors)}"))
            else:
                shown += [(error.line, self._message(error)) for error in errors]
        more = f", the first {MAX_SHOWN}" if len(shown) > MAX_SHOWN else ""
        lines = [text for _, text in sorted(shown, key=lambda one: one[0])[:MAX_SHOWN]]
        return "\n  ".join([f"{self.source} has {self.count} problems{more}:", *lines])

    def _message(self, error: _Error) -> str:
        location = self.locate(error.line) if error.line else self.source
        location += f", field {error.field!r}" if error.field is not None else ""
        location += f", value {shorten(error.value)}" if error.value is not NOT_GIVEN else ""
        return f"{location}: {error.error}. {error.remedy}"


def _others(errors: Sequence[_Error]) -> str:
    """Where else the first error occurs, and with which values."""
    lines = [str(error.line) for error in errors[1:]]
    values = list(dict.fromkeys(shorten(error.value, 30) for error in errors if error.value is not NOT_GIVEN))
    count = f"{len(lines)} more" if len(errors) < MAX_KEPT else "many more"
    also = f" Values: {_first(values)}." if len(values) > 1 else ""
    return f"The same in {count}: {_first(lines)}.{also}"


def _first(texts: Sequence[str]) -> str:
    return ", ".join(texts[:MAX_SHOWN]) + (", …" if len(texts) > MAX_SHOWN else "")


def raise_errors(reports: Iterable[ErrorReport]) -> None:
    """Raise one `InputError` that lists the errors of all reports; do nothing if there are none."""
    messages = [str(report) for report in reports if report.count]
    if messages:
        raise InputError("\n".join(messages))
