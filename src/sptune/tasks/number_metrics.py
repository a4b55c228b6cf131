"""Metrics of a regression: RMSE, MAE, R^2, and Pearson's and Spearman's correlations."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from sptune.errors import InputError


def number_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    """Compute the metrics of a regression.

    Args:
        predicted: numbers, (n,).
        true: numbers, (n,).

    Returns:
        "r2" (1 - sum of squared errors / sum of squared deviations from the mean of `true`; where all of `true` are
        equal, 1 if all errors are zero, else 0), "rmse", "mae", and the correlations "pearson" and "spearman", which
        are None where all predictions or all of `true` are equal.

    Raises:
        InputError: there are no examples, or the shapes differ.
    """
    predicted, true = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape or not len(true):
        raise InputError(
            f"Metrics need numbers of the same shape (n,) with n > 0; predictions have {predicted.shape}, labels "
            f"{true.shape}."
        )
    errors = predicted - true
    spread = float(((true - true.mean()) ** 2).sum())
    squared = float((errors**2).sum())
    return {
        # The spread of equal numbers is not always zero: their mean may be rounded.
        "r2": 1 - squared / spread if true.min() < true.max() else float(squared == 0),
        "rmse": float(np.sqrt(squared / len(true))),
        "mae": float(np.abs(errors).mean()),
        "pearson": _correlation(predicted, true),
        "spearman": _correlation(rankdata(predicted), rankdata(true)),
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of both does not vary."""
    if first.min() == first.max() or second.min() == second.max():
        return None
    one, other = first - first.mean(), second - second.mean()
    return float((one @ other) / np.sqrt((one @ one) * (other @ other)))
