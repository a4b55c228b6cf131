from dataclasses import dataclass

import numpy as np

from sptune.tasks.example_pool import ExamplePool
from sptune.tasks.stored_examples import StoredExamples


@dataclass(frozen=True)
class Numbered:
    """An example whose text is a number: -1 and -2 have the same hash in Python."""

    text: int
    stratum: str = "a"
    where: str = "here"


def test_texts_with_the_same_hash_are_not_repeats() -> None:
    assert hash(-1) == hash(-2)
    train = ExamplePool.of(StoredExamples.write(map(Numbered, [-1, 5, 7])))
    other = ExamplePool.of(StoredExamples.write(map(Numbered, [-2, 7, 8, -1])))
    assert other.repeats(train).tolist() == [False, True, False, True]
    none = ExamplePool.of(StoredExamples[Numbered].write(()))
    assert other.repeats(none).tolist() == [False] * 4
    assert none.repeats(train).tolist() == []


def test_a_divided_and_joined_pool_keeps_groups_and_texts_together() -> None:
    pool = ExamplePool.of(StoredExamples.write(Numbered(number, "ab"[number % 2]) for number in range(6)))
    rest, taken = pool.divide(np.array([False, True, True, False, False, True]))
    assert [one.text for one in rest.examples] == [0, 3, 4]
    assert rest.strata.counts() == {"a": 2, "b": 1}
    joined = taken.joined(rest)
    assert [one.text for one in joined.examples] == [1, 2, 5, 0, 3, 4]
    assert joined.hashes.tolist() == [hash(one.text) for one in joined.examples]
    assert joined.strata.counts() == {"a": 3, "b": 3}
