"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sptune.report.charts import layer_scores, learning_curves, search_curves
from sptune.report.intervals import f1_interval, mean_interval, share_interval
from sptune.report.page import page

MISTAKES = 10
# A larger matrix is no longer readable.
MAX_CLASSES = 30
MAX_TEXT = 1500


@dataclass(frozen=True)
class RunRecord:
    """What a run left.

    Attributes:
        name: of the run.
        metrics: the content of metrics.json; empty if the run has not come so far.
        search: the content of search.json; None if there was no search.
        score_name: what the layers' scores are.
        history: losses over the steps of the final training; empty if they were not kept.
        predictions: the rows of predictions.jsonl.
        similarities: ROUGE-L of each generated text; empty for a classification task.
        positive_label: the class of F1, if there is one.
        usage: Python code that loads the adapter.
        config: the text of config.yaml.
        remarks: what the reader should know first.
        version: of sptune.
    """

    name: str
    metrics: dict[str, Any]
    search: dict[str, Any] | None
    score_name: str
    history: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    similarities: list[float]
    positive_label: str | None
    usage: str
    config: str
    remarks: list[str]
    version: str


def run_page(record: RunRecord) -> str:
    """The page of a run, as HTML."""
    search = record.search
    figures = [search_curves(search), layer_scores(search, record.score_name)] if search and search["history"] else []
    generates = bool(record.similarities)
    return page(
        "run.html.j2",
        kind="Run",
        title=record.name,
        version=record.version,
        remarks=record.remarks,
        sentence=_sentence(record),
        metrics=record.metrics,
        search_figures=[figure for figure in figures if figure],
        curves=learning_curves(record.history),
        confusion=None if generates else _confusion(record.predictions),
        mistakes=_unlike_texts(record) if generates else _mistakes(record.predictions),
        mistakes_title="Texts least like their completions" if generates else "Most confident mistakes",
        usage=record.usage,
        config=record.config,
        **(_figures(record) if record.metrics else {}),
    )


def _figures(record: RunRecord) -> dict[str, Any]:
    metrics, intervals = record.metrics, _Intervals(record)
    names = [name for name in ("accuracy", "f1", "mean", "loss", "perplexity") if name in metrics["test"]]
    columns = [(split, name) for split in ("validation", "test") for name in names]
    columns += [("test", name) for name in ("exact_match", "rouge_l") if name in metrics["test"]]
    lines = [_line("prompts", metrics, "", columns, intervals, highlight=True)]
    if metrics.get("baseline"):
        lines.insert(0, _line(metrics["baseline"]["kind"], metrics["baseline"], "baseline.", columns, intervals))
        lines.append({**_line("gain", metrics["gain"], "gain.", columns, None), "form": "+.4f"})
    sizes = [(f"parameters: {name}", value, f"parameters.{name}") for name, value in metrics["parameters"].items()]
    sizes.append(("adapter, bytes", metrics["adapter_bytes"], "adapter_bytes"))
    if metrics.get("peak_memory"):
        sizes.append(("peak memory, bytes", metrics["peak_memory"], "peak_memory"))
    return {"scores": lines, "score_columns": columns, "interval_note": _interval_note(names), "sizes": sizes}


def _interval_note(names: Sequence[str]) -> str:
    note = "Below a score: its 95 % interval over test examples"
    if "loss" in names:
        return f"{note} (Wilson's for exact matches, bootstrap for ROUGE-L; losses have none)."
    return f"{note} (Wilson's for accuracy{', bootstrap for F1' if 'f1' in names else ''})."


class _Intervals:
    """The intervals of test scores."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def of(self, place: str, name: str, value: float, examples: Mapping[str, Any]) -> tuple[float, float] | None:
        """The interval of a score; None where there is none.

        Args:
            place: which method's it is: empty for the prompts.
            name: of the metric.
            value: the score.
            examples: the metrics that it is among, which have the number of examples.
        """
        if name == "accuracy":
            return share_interval(value, examples["examples"])
        if name == "exact_match" and not place:
            return share_interval(value, examples["generated_examples"])
        if name == "rouge_l" and not place:
            return mean_interval(self.record.similarities)
        if name == "f1" and not place and self.record.positive_label is not None:
            rows, positive = self.record.predictions, self.record.positive_label
            return f1_interval(
                [row["prediction"] == positive for row in rows], [row["label"] == positive for row in rows]
            )
        return None


def _line(
    name: str,
    metrics: Mapping[str, Any],
    place: str,
    columns: Sequence[tuple[str, str]],
    intervals: _Intervals | None,
    highlight: bool = False,
) -> dict[str, Any]:
    """A row of the table of scores.

    Args:
        name: of the method.
        metrics: its metrics by split.
        place: where they stand in metrics.json.
        columns: split and metric of each cell.
        intervals: of test scores; None for none.
        highlight: whether the row stands out.
    """
    cells = []
    for split, metric in columns:
        value = metrics[split].get(metric)
        known = intervals is not None and split == "test" and value is not None
        interval = intervals.of(place, metric, value, metrics[split]) if known and intervals else None
        cells.append({"value": value, "place": f"{place}{split}.{metric}", "interval": interval})
    return {"name": name, "cells": cells, "form": ".4f", "highlight": highlight}


def _sentence(record: RunRecord) -> str:
    """What was done."""
    metrics, search = record.metrics, record.search
    layers = metrics.get("prompt_layers") or (search or {}).get("prompt_layers") or []
    listed = f"layer{'s' if len(layers) != 1 else ''} {', '.join(map(str, layers))}"
    searcher = f", chosen by searcher {search['search']['searcher']}," if search else ""
    if not metrics:
        steps = f" in {search['steps']:,} steps" if search and search["steps"] else ""
        return f"The search{searcher.replace(', chosen', '').rstrip(',')} chose {listed}{steps}."
    test, backbone = metrics["test"], Path(metrics["model"]).name
    measure = "accuracy" if "accuracy" in test else "loss"
    result = f"a test {measure} of {test[measure]:.4f}"
    if metrics.get("baseline"):
        result += f", against {metrics['baseline']['test'][measure]:.4f} of the {metrics['baseline']['kind']}"
    ended = ", where training ended early," if metrics["training"].get("stopped_early") else ""
    return (
        f"Prompts at {listed}{searcher} of the frozen backbone {backbone} were trained for "
        f"{metrics['training']['steps']:,} steps{ended} and reach {result}."
    )


def _confusion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Counts by class and prediction; None if there are no classes, or too many to show."""
    labels = list(rows[0]["scores"]) if rows else []
    if not labels or len(labels) > MAX_CLASSES:
        return None
    places = {label: place for place, label in enumerate(labels)}
    counts = [[0] * len(labels) for _ in labels]
    for row in rows:
        counts[places[row["label"]]][places[row["prediction"]]] += 1
    return {"labels": labels, "rows": counts}


def _mistakes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The wrong predictions that the network was surest of; None without predictions."""
    if not rows:
        return None
    wrong = [row for row in rows if row["prediction"] != row["label"]]
    surest = sorted(wrong, key=lambda row: -row["scores"][row["prediction"]])[:MISTAKES]
    texts = [name for name in rows[0] if name not in ("label", "prediction", "scores")]
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


def _unlike_texts(record: RunRecord) -> dict[str, Any]:
    """The generated texts that have least in common with the completion of the data."""
    pairs = sorted(zip(record.similarities, record.predictions, strict=True), key=lambda pair: pair[0])[:MISTAKES]
    return {
        "caption": f"{len(pairs)} of {len(record.predictions):,} generated texts, by ROUGE-L with their completions.",
        "columns": ["ROUGE-L", "prompt", "completion", "generated"],
        "rows": [
            [f"{likeness:.4f}", *(_shortened(row[name]) for name in ("prompt", "completion", "generated"))]
            for likeness, row in pairs
        ],
    }


def _shortened(text: Any) -> str:
    """A text, or the turns of a conversation, at most `MAX_TEXT` characters long."""
    if isinstance(text, list):
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in text)
    text = str(text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
