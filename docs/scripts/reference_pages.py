"""A MkDocs hook: the reference is made from the command's own help and from the help of the configurations' fields."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import typer.main
from peft import PeftConfig

import sptune
from sptune.cli.commands import app

COMMANDS = "<!-- commands -->"
FIELDS = re.compile(r"<!-- fields: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands and the fields where the page asks for them."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    return FIELDS.sub(lambda found: fields(found[1]), markdown)


def fields(name: str) -> str:
    """A table of the fields of a configuration class that have a help text, without those of every PEFT method."""
    inherited = {field.name for field in dataclasses.fields(PeftConfig)} - {"task_type"}
    rows = ["| field | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(getattr(sptune, name)):
        if "help" in field.metadata and field.name not in inherited:
            default = "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
            rows.append(f"| `{field.name}` | {default} | {_cell(field.metadata['help'])} |")
    return "\n".join(rows)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("[", "\\[")


def commands() -> str:
    """A section for each command, with a table of options for each group of them."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(f"sptune {name}", command) for name, command in group.commands.items())


def _command(title: str, command: Any) -> str:
    panels: dict[str, list[str]] = {}
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(_option(option))
    positional = [one for one in command.params if one.param_type_name == "argument"]
    arguments = "".join(f" {one.name.upper()}{'...' if one.nargs == -1 else ''}" for one in positional)
    lines = [f"## {title}", "", command.help or "", "", "```text", f"{title}{arguments} [OPTIONS]", "```"]
    for panel, rows in panels.items():
        lines += ["", f"**{panel}**", "", "| option | meaning |", "| --- | --- |", *rows]
    return "\n".join(lines)


def _option(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    return f"| {flags} | {_cell(option.help)}{' Repeatable.' if option.multiple else ''} |"
