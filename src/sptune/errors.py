"""The errors sptune raises at its edges. Each message names the thing, the place and the remedy."""


class SptuneError(Exception):
    """A run failed for a reason the user can act on (the command line exits with 1)."""


class InputError(SptuneError, ValueError):
    """Options, files or models that cannot be right (the command line exits with 2)."""
