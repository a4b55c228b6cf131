"""Dividing a number of examples among classes in proportion; the splits of the data and of a search use it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def allot(shares: Sequence[float | Fraction], number: int, most: Sequence[int], least: int = 0) -> list[int]:
    """How many examples of each class make up a number: shares rounded down, then the largest remainders first.

    Args:
        shares: exact share of each class; of equal remainders the first class counts.
        number: how many examples in all.
        most: upper bound of each class; where all bounds are reached, fewer examples are allotted.
        least: lower bound of every class.
    """
    places = range(len(shares))
    allotted = [min(max(int(shares[place]), least), most[place]) for place in places]
    while (missing := number - sum(allotted)) > 0:
        free = [place for place in places if allotted[place] < most[place]]
        if not free:
            break
        for place in sorted(free, key=lambda place: allotted[place] - shares[place])[:missing]:
            allotted[place] += 1
    while sum(allotted) > number:
        spare = [place for place in places if allotted[place] > least]
        allotted[max(spare, key=lambda place: allotted[place] - shares[place])] -= 1
    return allotted
