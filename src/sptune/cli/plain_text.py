"""Texts of users and of files as Rich prints them: neither its markup nor codes that act on a terminal take effect."""

from __future__ import annotations

import re

from rich import markup

# Control characters other than tab and line feed, and those that turn the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    """The text with control characters spelled out, and without effect as markup."""
    return markup.escape(CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))
