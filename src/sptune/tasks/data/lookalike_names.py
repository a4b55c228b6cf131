"""Names that look alike but differ in case, spaces, invisible characters or Unicode code points."""

from __future__ import annotations

import unicodedata

# Characters without a glyph that Unicode does not classify as format characters.
FILLERS = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0"}


def is_invisible(character: str) -> bool:
    """Whether a character shows nothing: a space, format or control character, or a variation selector."""
    if character.isspace() or character in FILLERS or unicodedata.category(character) in ("Cf", "Cc"):
        return True
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return all(map(is_invisible, text))


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON can write, and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def lookalike_key(name: str) -> str:
    """A key that names share if they look alike: NFKC, without case, spaces and invisible characters."""
    return "".join(_visible(_visible(name).casefold()).split())


def _visible(name: str) -> str:
    """The visible form of a name, with every hyphen and dash as "-"."""
    characters = unicodedata.normalize("NFKC", name)
    return "".join(
        "-" if unicodedata.category(one) == "Pd" or one == "\u2212" else one
        for one in characters
        if one.isspace() or not is_invisible(one)
    )


def spell_out(name: str, other: str) -> str:
    """Format a name next to its lookalike.

    If both have the same visible form, the name is escaped and followed by the characters that only it contains.
    """
    if _visible(name) != _visible(other):
        return repr(name)
    own = [one for one in dict.fromkeys(name) if one not in other and not one.isascii()]
    code_points = ", ".join(f"U+{ord(one):04X} {unicodedata.name(one, 'without a name')}" for one in own)
    return ascii(name) + (f" (with {code_points})" if code_points else "")
