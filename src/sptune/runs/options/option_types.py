"""`Option`: the type, help and command-line flag of an option, and the check of its values."""

from __future__ import annotations

import contextlib
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sptune.errors import InputError


@dataclass(frozen=True)
class Option:
    """An option of a run.

    Attributes:
        name: in Python and YAML.
        hint: its type.
        default: None where the run chooses.
        help: for the command line.
        group: of the command line's help.
        verbs: the commands that take it.
        choices: the values allowed; None for any.
        flag: on the command line, without dashes.
    """

    name: str
    hint: Any
    default: Any
    help: str
    group: str
    verbs: tuple[str, ...]
    choices: tuple[str, ...] | None
    flag: str

    def convert(self, value: Any) -> Any:
        """The value in the type of the option.

        Raises:
            InputError: it has another type.
        """
        value = _coerce(value, self.hint)
        if not _fits(value, self.hint):
            listed = f" Write {re.split(r', *', value)}." if _fits([value], self.hint) else ""
            raise InputError(f"{self.name}={value!r} has the wrong type; it takes {_describe(self.hint)}.{listed}")
        return value

    def check_choice(self, value: Any) -> None:
        """Refuse what is not among the choices.

        Raises:
            InputError: which are.
        """
        if self.choices and value is not None and value not in self.choices:
            raise InputError(f"{self.name}={value!r} is not allowed; choose one of {', '.join(self.choices)}.")


def _coerce(value: Any, hint: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict) and dict[str, float] in typing.get_args(hint):
        return {key: _coerce(one, float) for key, one in value.items()}
    wants_float = hint is float or float in typing.get_args(hint)
    if wants_float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 5e-3 as a text
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(one) for one in arguments)
    if origin is list:
        return f"a list of {'whole numbers' if arguments[0] is int else 'texts'}"
    if origin is dict:
        return f"a mapping of texts to {'numbers' if arguments[1] is float else 'texts'}"
    return names[hint]
