"""Metrics of several labels, against values computed by hand."""

import numpy as np
import pytest

from sptune.errors import InputError
from sptune.tasks.label_metrics import average_precision, label_metrics

NAMES = ("a", "b", "c")
# At a threshold of 0.5: a is predicted for the first three, b for the last one, c never.
PROBABILITIES = np.array([[0.9, 0.1, 0.2], [0.8, 0.4, 0.1], [0.7, 0.2, 0.3], [0.2, 0.6, 0.4]])
TRUE = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])


def test_metrics_are_those_computed_by_hand():
    metrics = label_metrics(NAMES, PROBABILITIES, TRUE, 0.5)
    # a: 2 hits, 3 predicted, 2 true; b: 1 hit, 1 predicted, 2 true.
    assert metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert metrics["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)
    assert metrics["subset_accuracy"] == 2 / 4
    assert metrics["hamming_loss"] == pytest.approx(2 / 12)
    assert metrics["labels"]["a"] == {
        "precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8), "average_precision": 1.0,
        "examples": 2,
    }  # fmt: skip
    assert metrics["labels"]["b"]["recall"] == 0.5
    assert metrics["labels"]["b"]["average_precision"] == 1.0
    assert metrics["mean_average_precision"] == 1.0


def test_what_is_not_defined_is_none():
    unused = label_metrics(NAMES, PROBABILITIES, TRUE, 0.5)["labels"]["c"]
    assert unused == {"precision": None, "recall": None, "f1": 0.0, "average_precision": None, "examples": 0}
    metrics = label_metrics(NAMES, PROBABILITIES, np.zeros((4, 3)), 0.95)
    assert metrics["mean_average_precision"] is None
    assert metrics["micro_f1"] == 0.0
    assert metrics["subset_accuracy"] == 1.0


def test_the_threshold_decides_which_labels_are_predicted():
    assert label_metrics(NAMES, PROBABILITIES, TRUE, 0.75)["labels"]["a"]["precision"] == 1.0
    assert label_metrics(NAMES, PROBABILITIES, TRUE, 0.4)["labels"]["b"]["recall"] == 1.0  # a probability of just 0.4


def test_average_precision_is_the_mean_precision_at_the_hits():
    # Ranked: hit, miss, hit, miss, hit.
    true = np.array([True, False, True, False, True])
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), true) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Of equal probabilities each counts with all of them, in whatever order they stand.
    assert average_precision(np.array([0.5, 0.5, 0.5, 0.5, 0.1]), true) == pytest.approx((2 / 4 + 2 / 4 + 3 / 5) / 3)
    assert average_precision(np.full(4, 0.3), np.array([False, True, False, False])) == 0.25


@pytest.mark.parametrize("shape", [(0, 3), (4, 2)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(InputError, match="same shape"):
        label_metrics(NAMES, PROBABILITIES, np.zeros(shape), 0.5)
