"""The errors sptune raises at its edges. Each message names the thing, the place and the remedy."""

import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 10
_SHORT.maxstring = _SHORT.maxother = 200


def shortened(value: object) -> str:
    """A value as a message shows it; of a long or deep one only the beginning."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__} with too many digits"


class SptuneError(Exception):
    """A run failed for a reason the user can act on (the command line exits with 1)."""


class InputError(SptuneError, ValueError):
    """Options, files or models that cannot be right (the command line exits with 2)."""


class UnknownAdapterError(InputError):
    """No adapter of this name is loaded.

    Attributes:
        known: the names of those that are.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.known = sorted(known)
        super().__init__(f"No adapter {name!r} is loaded; loaded are: {', '.join(self.known) or 'none'}.")


class TooLongError(InputError):
    """A text is longer than its adapter reads.

    Attributes:
        length: of the text.
        maximum: that is read.
        unit: what is counted.
    """

    def __init__(self, length: int, maximum: int, unit: str = "tokens") -> None:
        self.length, self.maximum, self.unit = length, maximum, unit
        super().__init__(f"The text has {length:,} {unit}, and at most {maximum:,} are read; shorten or split it.")


class TakenNameError(InputError):
    """An adapter of this name is loaded already."""
