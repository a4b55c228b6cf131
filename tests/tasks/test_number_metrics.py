"""Metrics of a regression, against values computed by hand and SciPy's correlations."""

import numpy as np
import pytest
from scipy import stats

from sptune.errors import InputError
from sptune.tasks.number_metrics import number_metrics


def test_metrics_are_those_computed_by_hand():
    metrics = number_metrics([2.0, 2.0, 5.0], [1.0, 3.0, 5.0])
    assert metrics["r2"] == pytest.approx(1 - 2 / 8)
    assert metrics["rmse"] == pytest.approx((2 / 3) ** 0.5)
    assert metrics["mae"] == pytest.approx(2 / 3)


def test_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 5, 200) * 1e6 + 1e9  # many ties, far from zero
    predicted = true + generator.normal(size=200) * 1e6
    metrics = number_metrics(predicted, true)
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(predicted, true).statistic)
    assert metrics["spearman"] == pytest.approx(stats.spearmanr(predicted, true).statistic)


def test_the_mean_explains_nothing_and_has_no_correlation():
    metrics = number_metrics([3.0, 3.0, 3.0], [1.0, 3.0, 5.0])
    assert metrics["r2"] == 0
    assert metrics["pearson"] is metrics["spearman"] is None
    assert number_metrics([3.0, 3.0], [3.0, 3.0])["r2"] == 1
    assert number_metrics([3.0, 3.5], [3.0, 3.0])["r2"] == 0
    assert number_metrics([0.1, 0.2, 0.1], [0.1, 0.1, 0.1])["r2"] == 0  # their mean is not 0.1


@pytest.mark.parametrize(("predicted", "true"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])])
def test_shapes_that_do_not_fit_are_refused(predicted, true):
    with pytest.raises(InputError, match="same shape"):
        number_metrics(predicted, true)
