"""Cuts the texts inside a template that is too long."""

from __future__ import annotations

from sptune.errors import InputError


def tokens_that_fit(
    text: str, spans: list[tuple[int, int]], offsets: list[tuple[int, int]], max_length: int
) -> list[int]:
    """The tokens that remain when the longest field loses its last token until the input fits.

    The template itself is never cut.

    Args:
        text: the rendered template.
        spans: the (start, end) characters of each field in it.
        offsets: the (start, end) characters of each token.
        max_length: the number of tokens that fit.

    Returns:
        The indices of the remaining tokens, ascending.

    Raises:
        InputError: if the template is too long even without its fields.
    """
    tokens_of_field: list[list[int]] = [[] for _ in spans]
    for index, (start, end) in enumerate(offsets):
        for field, (first, last) in enumerate(spans):
            if start < end and first < end <= last:
                tokens_of_field[field].append(index)
    dropped = set()
    for _ in range(len(offsets) - max_length):
        longest = max(tokens_of_field, key=len)
        if not longest:
            raise InputError(
                f"{text[:80]!r}… has more than max_length={max_length} tokens even without its text; choose a larger "
                "max_length."
            )
        dropped.add(longest.pop())
    return [index for index in range(len(offsets)) if index not in dropped]
