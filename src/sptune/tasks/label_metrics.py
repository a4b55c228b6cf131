"""Metrics of several labels: micro and macro F1, subset accuracy, Hamming loss, and average precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from sptune.errors import InputError

Metrics = dict[str, Any]


def label_metrics(labels: tuple[str, ...], probabilities: np.ndarray, true: np.ndarray, threshold: float) -> Metrics:
    """Compute the metrics of several labels.

    F1 is 2 TP / (2 TP + FP + FN), or 0 without any. Macro F1 is the mean over labels, micro F1 that of all counts.

    Args:
        labels: names.
        probabilities: (n, labels).
        true: whether an example has the label, (n, labels).
        threshold: labels with at least this probability are predicted.

    Returns:
        "micro_f1", "macro_f1", "subset_accuracy" (the share of examples with just the right labels), "hamming_loss"
        (the share of wrong decisions), "mean_average_precision" (over the labels that have one; None without any) and
        "labels": for each label its "precision" (None if it is never predicted), "recall" and "average_precision"
        (None if no example has it), "f1", and the number of "examples" that have it.

    Raises:
        InputError: there are no examples, or the shapes differ.
    """
    true, predicted = np.asarray(true) > 0, probabilities >= threshold
    if probabilities.shape != true.shape or not true.size or true.shape[1] != len(labels):
        shapes = f"they have {probabilities.shape} and {true.shape}"
        raise InputError(f"Metrics need arrays of the same shape (n, {len(labels)}) with n > 0; {shapes}.")
    hits, predictions, positives = (predicted & true).sum(0), predicted.sum(0), true.sum(0)
    by_label = {
        label: {
            "precision": _share(hits[place], predictions[place]),
            "recall": _share(hits[place], positives[place]),
            "f1": _f1(hits[place], predictions[place] + positives[place]),
            "average_precision": average_precision(probabilities[:, place], true[:, place]),
            "examples": int(positives[place]),
        }
        for place, label in enumerate(labels)
    }
    precisions = [value for one in by_label.values() if (value := one["average_precision"]) is not None]
    return {
        "micro_f1": _f1(hits.sum(), predictions.sum() + positives.sum()),
        "macro_f1": float(np.mean([one["f1"] for one in by_label.values()])),
        "subset_accuracy": float((predicted == true).all(1).mean()),
        "hamming_loss": float((predicted != true).mean()),
        "mean_average_precision": float(np.mean(precisions)) if precisions else None,
        "labels": by_label,
    }


def average_precision(probabilities: np.ndarray, true: np.ndarray) -> float | None:
    """The mean, over the examples with the label, of the precision among all that are at least as probable.

    Args:
        probabilities: of the label, (n,).
        true: whether an example has it, (n,), booleans.

    Returns:
        None if no example has it.
    """
    if not true.any():
        return None
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], true[order].cumsum()
    # Equally probable examples are not ordered: each counts with all of them.
    last = np.searchsorted(-ranked, -ranked, side="right") - 1
    return float((hits[last] / (last + 1))[true[order]].mean())


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _f1(hits: int, of_either: int) -> float:
    return float(2 * hits / of_either) if of_either else 0.0
