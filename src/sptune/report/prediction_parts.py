"""The predictions on a run's page, by the kind of task: confusion matrix, or errors of numbers, and mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MISTAKES = 10
# A larger matrix is no longer readable.
MAX_CLASSES = 30
MAX_TEXT = 1500

Rows = Sequence[Mapping[str, Any]]


def confusion(rows: Rows) -> dict[str, Any] | None:
    """Counts by class and prediction; None if there are no classes, or too many to show."""
    labels = list(rows[0]["scores"]) if rows else []
    if not labels or len(labels) > MAX_CLASSES:
        return None
    places = {label: place for place, label in enumerate(labels)}
    counts = [[0] * len(labels) for _ in labels]
    for row in rows:
        counts[places[row["label"]]][places[row["prediction"]]] += 1
    return {"labels": labels, "rows": counts}


def mistakes(rows: Rows) -> dict[str, Any] | None:
    """The wrong predictions that the network was surest of; None without predictions."""
    if not rows:
        return None
    wrong = [row for row in rows if row["prediction"] != row["label"]]
    surest = sorted(wrong, key=lambda row: -row["scores"][row["prediction"]])[:MISTAKES]
    texts = _text_columns(rows)
    return {
        "caption": f"{len(surest)} of the {len(wrong):,} wrong predictions on test data, the most confident first.",
        "columns": ["probability", "predicted", "class", *texts],
        "rows": [
            [
                f"{row['scores'][row['prediction']]:.4f}",
                str(row["prediction"]),
                str(row["label"]),
                *(_shortened(row[name]) for name in texts),
            ]
            for row in surest
        ],
    }


def unlike_texts(rows: Rows, similarities: Sequence[float]) -> dict[str, Any]:
    """The generated texts that have least in common with the completion of the data.

    Args:
        rows: of predictions.jsonl.
        similarities: ROUGE-L of each generated text.
    """
    pairs = sorted(zip(similarities, rows, strict=True), key=lambda pair: pair[0])[:MISTAKES]
    return {
        "caption": f"{len(pairs)} of {len(rows):,} generated texts, by ROUGE-L with their completions.",
        "columns": ["ROUGE-L", "prompt", "completion", "generated"],
        "rows": [
            [f"{likeness:.4f}", *(_shortened(row[name]) for name in ("prompt", "completion", "generated"))]
            for likeness, row in pairs
        ],
    }


def label_mistakes(rows: Rows) -> dict[str, Any] | None:
    """The examples with the wrong label that the network was surest of; None without predictions."""
    if not rows:
        return None
    wrong = [(row, _surest_mistake(row)) for row in rows if set(row["prediction"]) != set(row["label"])]
    surest = sorted(wrong, key=lambda one: -one[1][1])[:MISTAKES]
    texts = _text_columns(rows)
    return {
        "caption": f"{len(surest)} of the {len(wrong):,} test examples with wrong labels, the most confident first.",
        "columns": ["wrong label", "its probability", "predicted", "labels", *texts],
        "rows": [
            [
                name,
                f"{row['scores'][name]:.4f}",
                ", ".join(row["prediction"]) or "none",
                ", ".join(row["label"]) or "none",
                *(_shortened(row[text]) for text in texts),
            ]
            for row, (name, _) in surest
        ],
    }


def _surest_mistake(row: Mapping[str, Any]) -> tuple[str, float]:
    """The wrong label of an example with the largest distance of its probability from the truth, and that distance."""
    distances = {
        name: abs(row["scores"][name] - (name in row["label"])) for name in {*row["prediction"]} ^ {*row["label"]}
    }
    return max(distances.items(), key=lambda one: (one[1], one[0]))


def number_mistakes(rows: Rows) -> dict[str, Any] | None:
    """The predicted numbers that are farthest from the true ones; None without predictions."""
    if not rows:
        return None
    worst = sorted(rows, key=lambda row: -abs(row["prediction"] - row["label"]))[:MISTAKES]
    texts = _text_columns(rows)
    return {
        "caption": f"{len(worst)} of {len(rows):,} test examples, the largest error first.",
        "columns": ["error", "predicted", "true", *texts],
        "rows": [
            [
                f"{row['prediction'] - row['label']:+.4g}",
                f"{row['prediction']:.6g}",
                f"{row['label']:.6g}",
                *(_shortened(row[text]) for text in texts),
            ]
            for row in worst
        ],
    }


def _text_columns(rows: Rows) -> list[str]:
    return [name for name in rows[0] if name not in ("label", "prediction", "scores")]


def _shortened(text: Any) -> str:
    """A text, or the turns of a conversation, at most `MAX_TEXT` characters long."""
    if isinstance(text, list):
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
    text = str(text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
