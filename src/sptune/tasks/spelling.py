"""Names that look alike: the same letters, but other capitals, spaces, characters that are not seen, or other codes."""

from __future__ import annotations

import unicodedata

# Not seen, though Unicode does not count them as format characters.
FILLERS = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u3164", "\uffa0"}


def is_invisible(character: str) -> bool:
    """Whether nothing is seen of a character: spaces, format and control characters, variation selectors."""
    if character.isspace() or character in FILLERS or unicodedata.category(character) in ("Cf", "Cc"):
        return True
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def is_blank(text: str) -> bool:
    """Whether nothing is seen of a text."""
    return all(map(is_invisible, text))


def look(name: str) -> str:
    """What names that look alike have in common: Unicode's form NFKC without capitals, spaces and the invisible."""
    return "".join(_seen(_seen(name).casefold()).split())


def _seen(name: str) -> str:
    """A name as it is seen; hyphens and dashes look alike."""
    characters = unicodedata.normalize("NFKC", name)
    return "".join(
        "-" if unicodedata.category(one) == "Pd" or one == "\u2212" else one
        for one in characters
        if one.isspace() or not is_invisible(one)
    )


def spelled(name: str, other: str) -> str:
    """A name as it is shown beside another that looks like it, with the characters that only it has, if not seen."""
    if _seen(name) != _seen(other):
        return repr(name)
    odd = [one for one in dict.fromkeys(name) if one not in other and not one.isascii()]
    names = ", ".join(f"U+{ord(one):04X} {unicodedata.name(one, 'without a name')}" for one in odd)
    return ascii(name) + (f" (with {names})" if names else "")
