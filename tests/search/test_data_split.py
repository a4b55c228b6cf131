"""The weight split and the architecture split: stratified, seeded, without overlap."""

from collections import Counter

import pytest
from datasets import Dataset

from sptune.search import SearchConfig
from sptune.search.data_split import split_dataset, split_indices


def class_counts(labels, indices):
    return Counter(labels[index] for index in indices)


@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_the_splits_share_every_class_and_hold_each_example_once(fraction):
    labels = [0] * 40 + [1] * 20 + [2] * 7
    weight_split, architecture_split = split_indices(labels, 67, gate_fraction=fraction, seed=1)
    assert sorted(weight_split + architecture_split) == list(range(67))
    assert len(architecture_split) == round(67 * fraction)
    counts = class_counts(labels, architecture_split)
    for label, size in Counter(labels).items():
        assert abs(counts[label] - size * fraction) <= 1


def test_a_class_of_one_example_stays_with_the_weights():
    labels = [0] * 20 + [1] * 2 + [2] * 2
    for seed in range(5):
        weight_split, architecture_split = split_indices(labels, 24, gate_fraction=0.7, seed=seed)
        assert {labels[index] for index in weight_split} == {0, 1, 2}
        assert len(architecture_split) == 17
    weight_split, architecture_split = split_indices([0] * 10 + [1], 11, gate_fraction=0.5, seed=0)
    assert 10 in weight_split
    assert len(architecture_split) == 6 or len(architecture_split) == 5


@pytest.mark.parametrize("labels", [None, [0, 1]])
def test_neither_split_is_empty(labels):
    weight_split, architecture_split = split_indices(labels, 2, gate_fraction=0.01, seed=0)
    assert len(weight_split) == len(architecture_split) == 1


def test_the_split_depends_on_the_seed_alone():
    labels = [index % 3 for index in range(30)]
    first = split_indices(labels, 30, gate_fraction=0.5, seed=4)
    assert split_indices(labels, 30, gate_fraction=0.5, seed=4) == first
    assert split_indices(labels, 30, gate_fraction=0.5, seed=5) != first


def test_rare_labels_of_examples_with_several_are_in_both_splits():
    # Every example has label 0; one in ten has label 1, too, and as many others have none.
    labels = [[1.0, float(index % 10 == 0)] if index % 10 != 5 else [0.0, 0.0] for index in range(60)]
    dataset = Dataset.from_dict({"labels": labels}).with_format("torch")
    for split in split_dataset(dataset, SearchConfig(gate_fraction=0.5)):
        rows = split[:]["labels"]
        assert int(rows[:, 1].sum()) == 3
        assert int((rows.sum(1) == 0).sum()) == 3
