"""A MkDocs hook: the reference of the command line is made from the command's own help."""

from __future__ import annotations

from typing import Any

import typer.main

from sptune.cli.commands import app

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands where the page asks for them."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands() -> str:
    """A section for each command, with a table of options for each group of them."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(f"sptune {name}", command) for name, command in group.commands.items())


def _command(title: str, command: Any) -> str:
    panels: dict[str, list[str]] = {}
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(_option(option))
    arguments = "".join(f" {one.make_metavar()}" for one in command.params if one.param_type_name == "argument")
    lines = [f"## {title}", "", command.help or "", "", "```text", f"{title}{arguments} [OPTIONS]", "```"]
    for panel, rows in panels.items():
        lines += ["", f"**{panel}**", "", "| option | meaning |", "| --- | --- |", *rows]
    return "\n".join(lines)


def _option(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    text = " ".join((option.help or "").split()).replace("|", "\\|").replace("[", "\\[")
    return f"| {flags} | {text}{' Repeatable.' if option.multiple else ''} |"
