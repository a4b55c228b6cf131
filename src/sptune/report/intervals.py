"""95 % intervals of scores over test examples: Wilson's for shares, percentile bootstrap for F1 and means."""

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
