"""The options of a run on the command line: their flags, types and values."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from sptune.cli.terminal import messages
from sptune.errors import InputError
from sptune.runs.options.option_mappings import RENAMED, with_new_names
from sptune.runs.options.option_types import Option
from sptune.runs.options.run_options import ORIGIN, all_options
from sptune.search.searchers import FIXED_SETTINGS

FLAGS = {name: f"--{option.flag}" for name, option in all_options().items()}
# Arguments of functions that only some commands take.
_OTHER_FLAGS = {name: f"--{name.replace('_', '-')}" for name in ("adapter_column", "root", "port", "replicas")}
# How help and messages call the types of numbers.
NUMBERS: dict[type, tuple[str, str]] = {int: ("INTEGER", "whole number"), float: ("FLOAT", "number")}
_NAMES = FLAGS | _OTHER_FLAGS
# What stands in quotation marks is the user's own and stays.
_OPTION = re.compile(rf"(?<!\w)'[^']*'|(?<!\w)\"[^\"]*\"|(?<![\w./-])({'|'.join(_NAMES)})(=(?=\S)|(?![\w=/-]|\.\w))")


def in_flags(message: str) -> str:
    """A message that names options as in Python, with the flags of the command line."""

    def flag(found: re.Match[str]) -> str:
        name, sign = found.groups()
        if name is None:
            return found[0]
        # Without a value, a name such as "data" is more likely just a word.
        alone = "_" not in name and found.string[found.start() - 1 : found.end() + 1] != f"({name})"
        return f"{_NAMES[name]} " if sign else name if alone else _NAMES[name]

    return _OPTION.sub(flag, message.removeprefix(f"{ORIGIN}: "))


def option_parameters(options: Iterable[Option]) -> list[inspect.Parameter]:
    """The parameters of these options, and hidden ones for the old names of some."""
    options = list(options)
    old = {new: old for old, new in RENAMED.items()}
    renamed = [
        dataclasses.replace(option, name=old[option.name], flag=old[option.name].replace("_", "-"))
        for option in options
        if option.name in old
    ]
    return [
        *(parameter(option.name, None, _annotation(option)) for option in options),
        *(parameter(option.name, None, _annotation(option, hidden=True)) for option in renamed),
    ]


def parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    """A parameter of a command that Typer takes by name."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option, *, hidden: bool = False) -> Any:
    """The command-line type of an option: repeated for lists and mappings of texts, separated by commas for layers."""
    flag, help_text = f"--{option.flag}", option.help
    is_switch = option.hint in (bool, bool | None)
    if option.choices:
        help_text += f" One of {', '.join(option.choices)}."
    if option.default is not None and not is_switch:
        help_text += f" Default: {option.default}."
    kind: Any = str
    if option.hint in (list[str], dict[str, str], str | dict[str, float] | None):
        kind = list[str]
    else:
        for simple in (bool, int, float):
            if option.hint in (simple, simple | None):
                kind = simple
    if is_switch and option.default is not False:
        flag = f"{flag}/--no-{option.flag}"
    number: dict[str, Any] = {"parser": _number_parser(kind), "metavar": NUMBERS[kind][0]} if kind in NUMBERS else {}
    shown = typer.Option(
        flag, help=help_text, rich_help_panel=option.group, show_default=False, hidden=hidden, **number
    )
    return Annotated[kind | None, shown]


def _number_parser(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    """Reads a number; Typer's own reader refuses other texts in words of its own."""

    def read(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a {NUMBERS[kind][1]}.") from None

    return read


def _weight(text: str) -> tuple[str, float]:
    """The class and the weight of LABEL=WEIGHT, whose label may contain the sign itself."""
    label, _, weight = text.rpartition("=")
    try:
        return label, float(weight)
    except ValueError:
        raise InputError(
            f"--class-weights {text!r} is not LABEL=WEIGHT; write for example positive=2, or only balanced."
        ) from None


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options given on the command line as RunOptions takes them, by their present names."""
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name in RENAMED:
            old, new = name.replace("_", "-"), RENAMED[name].replace("_", "-")
            messages.print(f"[yellow]Note:[/] --{old} is now --{new}; the old name will be removed.", soft_wrap=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the note says it
        return {name: _parse(name, value) for name, value in with_new_names(given).items()}


def _parse(name: str, value: Any) -> Any:
    """The value of an option as RunOptions takes it."""
    if name == "label_words":
        pairs = [text.partition("=") for text in value]
        wrong = [text for text, (_, sign, word) in zip(value, pairs, strict=True) if not (sign and word)]
        if wrong:
            raise InputError(f"--label-word {wrong[0]!r} is not LABEL=WORD; write for example positive=great.")
        return {label: word for label, _, word in pairs}
    if name == "class_weights":
        return value[0] if len(value) == 1 and "=" not in value[0] else dict(map(_weight, value))
    if name in ("prompt_layers", "candidate_layers"):
        if name == "prompt_layers" and value in FIXED_SETTINGS:
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            raise InputError(f"{FLAGS[name]} {value!r} is not a list of layers; write indices such as 3,5.") from None
    return value
