from collections import Counter

import pytest

from sptune.errors import InputError
from sptune.tasks import Example, few_shot, split_stratified
from sptune.tasks.splits import divide
from sptune.tasks.stored_examples import StoredExamples


def examples(counts, text="{label} {index}"):
    rows = [(label, index) for label, count in counts.items() for index in range(count)]
    return [
        Example({"text": text.format(label=label, index=index)}, label, f"train.jsonl:{line}")
        for line, (label, index) in enumerate(rows, start=1)
    ]


def count(split):
    return Counter(example.label for example in split)


def test_a_split_keeps_the_proportions_and_all_examples():
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    stay, taken = split_stratified(labels, 0.2, seed=0)
    assert Counter(labels[index] for index in taken) == {"a": 12, "b": 6, "c": 2}
    assert sorted(stay + taken) == list(range(100))


def test_the_seed_determines_the_split():
    labels = ["a", "b"] * 50
    first = split_stratified(labels, 20, seed=1)
    assert first == split_stratified(labels, 20, seed=1)
    assert first != split_stratified(labels, 20, seed=2)


def test_an_example_of_each_class_remains():
    stay, taken = split_stratified(["a", "b", "b", "b"], 3, seed=0)
    assert 0 in stay
    assert len(taken) == 2


def test_few_shot_draws_the_number_in_proportion_with_one_of_each_class():
    drawn, others = few_shot(examples({"a": 700, "b": 297, "c": 3}), 100, seed=0)
    assert count(drawn) == {"a": 70, "b": 29, "c": 1}
    assert len(others) == 900
    assert not {example.where for example in drawn} & {example.where for example in others}


@pytest.mark.parametrize("number", [1, 11])
def test_few_shot_names_the_allowed_numbers(number):
    with pytest.raises(InputError, match=f"few_shot={number} .*from 2 to 10"):
        few_shot(examples({"a": 5, "b": 5}), number, seed=0)


def divided(train, validation=None, test=None, few_shot_count=None, seed=0):
    given = {"train": train, "validation": validation, "test": test}
    examples = {role: split for role, split in given.items() if split is not None}
    stored = {role: StoredExamples.write(own) for role, own in examples.items()}
    return divide(stored, few_shot_count=few_shot_count, seed=seed, source="train.jsonl")


def places(split):
    return {example.where for example in split}


def test_missing_splits_are_split_off_without_overlap():
    splits = divided(examples({"a": 60, "b": 40}))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (70, 10, 20)
    assert count(splits.test) == {"a": 12, "b": 8}
    assert len(places(splits.train) | places(splits.validation) | places(splits.test)) == 100
    assert sum("were split off" in note for note in splits.notes) == 2


def test_given_splits_are_unchanged():
    train, test = examples({"a": 10, "b": 10}), examples({"a": 3, "b": 3}, "new {label} {index}")
    splits = divided(train, test=test)
    assert splits.test == test
    assert (len(splits.train), len(splits.validation)) == (18, 2)


def test_a_repeated_text_is_in_one_split_only():
    splits = divided(examples({"a": 200, "b": 200}, text="{label}") + examples({"a": 100, "b": 100}))
    texts = [{tuple(example.fields.values()) for example in split} for split in (splits.train, splits.test)]
    assert not texts[0] & texts[1]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 600


def test_test_texts_in_the_training_data_are_noted():
    train = examples({"a": 10, "b": 10})
    splits = divided(train, test=[train[0], *examples({"a": 3, "b": 3}, "new {label} {index}")])
    assert any("1 of 7 test texts also occur in the training data" in note for note in splits.notes)


def test_few_shot_validates_on_a_thousand_examples_and_tests_on_the_rest():
    splits = divided(examples({"a": 1500, "b": 1500}), few_shot_count=500)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (500, 1000, 1500)
    assert count(splits.train) == {"a": 250, "b": 250}
    assert len(places(splits.train) | places(splits.validation) | places(splits.test)) == 3000


def test_few_shot_uses_given_test_data():
    test = examples({"a": 3, "b": 3}, "new {label} {index}")
    splits = divided(examples({"a": 400, "b": 400}), test=test, few_shot_count=100)
    assert (len(splits.train), len(splits.validation)) == (100, 700)
    assert splits.test == test


def test_few_shot_halves_a_small_rest_between_validation_and_test():
    splits = divided(examples({"a": 50, "b": 50}), few_shot_count=20)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (20, 40, 40)


@pytest.mark.parametrize("few_shot_count", [None, 2])
def test_too_few_examples_are_refused(few_shot_count):
    with pytest.raises(InputError, match="too few examples"):
        divided(examples({"a": 1, "b": 1}), few_shot_count=few_shot_count)


def test_texts_that_differ_only_in_blanks_around_them_are_not_in_two_splits():
    twice = [*examples({"a": 100, "b": 100}), *examples({"a": 100, "b": 100}, " {label} {index}\n")]
    splits = divide({"train": StoredExamples.write(twice)}, few_shot_count=20, seed=0, source="train.jsonl")
    train, test = ({example.fields["text"].strip() for example in one} for one in (splits.train, splits.test))
    assert not train & test
