"""95 % intervals of scores over test examples: Wilson's for shares, percentile bootstrap for F1, R^2 and means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 1000


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, which does not shrink to a point where all of a few examples are right."""
    found = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of a mean over examples."""
    return _bootstrap([np.asarray(values, dtype=float)], lambda sample, axis=-1: sample.mean(axis))


def f1_interval(predicted: Sequence[bool], true: Sequence[bool]) -> tuple[float, float]:
    """Bootstrap interval of F1.

    Args:
        predicted: whether each example is predicted to be of the positive class.
        true: whether it is.
    """

    def f1(hits: np.ndarray, either: np.ndarray, axis: int = -1) -> np.ndarray:
        return 2 * hits.sum(axis) / np.maximum(either.sum(axis), 1)

    one, other = np.asarray(predicted, dtype=int), np.asarray(true, dtype=int)
    return _bootstrap([one * other, one + other], f1)


def micro_f1_interval(pairs: Sequence[tuple[set[str], set[str]]]) -> tuple[float, float]:
    """Bootstrap interval of micro F1 over examples.

    Args:
        pairs: the predicted and the true labels of each example.
    """

    def f1(hits: np.ndarray, either: np.ndarray, axis: int = -1) -> np.ndarray:
        return 2 * hits.sum(axis) / np.maximum(either.sum(axis), 1)

    hits = np.array([len(predicted & true) for predicted, true in pairs])
    return _bootstrap([hits, np.array([len(predicted) + len(true) for predicted, true in pairs])], f1)


def r2_interval(predicted: Sequence[float], true: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of R^2 over examples, which is as `number_metrics` has it where all true numbers are equal."""

    def r2(predictions: np.ndarray, numbers: np.ndarray, axis: int = -1) -> np.ndarray:
        spread = ((numbers - numbers.mean(axis, keepdims=True)) ** 2).sum(axis)
        squared = ((predictions - numbers) ** 2).sum(axis)
        equal = numbers.min(axis) == numbers.max(axis)
        return np.where(equal, squared == 0, 1 - squared / np.where(equal, 1.0, spread))

    return _bootstrap([np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)], r2)


def _bootstrap(samples: list[np.ndarray], statistic: object) -> tuple[float, float]:
    """Percentile bootstrap over examples; the same examples give the same interval."""
    if len(samples[0]) < 2:
        value = float(statistic(*samples))  # type: ignore[operator]
        return value, value
    found = stats.bootstrap(
        samples, statistic, paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES, batch=100,
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)
