"""The page of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sptune.report.charts import layer_scores, learning_curves, number_chart, search_curves
from sptune.report.intervals import f1_interval, mean_interval, micro_f1_interval, r2_interval, share_interval
from sptune.report.page import page
from sptune.report.prediction_parts import confusion, label_mistakes, mistakes, number_mistakes, unlike_texts

# The metrics of the table of scores, in its order.
SHOWN = (
    "accuracy", "f1", "mean", "micro_f1", "macro_f1", "subset_accuracy", "hamming_loss", "r2", "rmse", "mae", "pearson",
    "spearman", "loss", "perplexity",
)  # fmt: skip
# With more metrics than this, the table of scores is wider than most screens.
MAX_NAMES = 3
# What the first sentence says, by the metric that tells the kind of task.
MEASURES = {"accuracy": "accuracy", "micro_f1": "micro F1", "r2": "R²", "loss": "loss"}
# What has an interval, in words.
INTERVALS = {
    "accuracy": "Wilson's for accuracy",
    "f1": "bootstrap for F1",
    "subset_accuracy": "Wilson's for subset accuracy",
    "micro_f1": "bootstrap for micro F1",
    "r2": "bootstrap for R²",
}


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
        **_prediction_parts(record),
        usage=record.usage,
        config=record.config,
        **(_figures(record) if record.metrics else {}),
    )


def _prediction_parts(record: RunRecord) -> dict[str, Any]:
    """What is shown of the predictions."""
    rows, test = record.predictions, record.metrics.get("test", {})
    parts: dict[str, Any] = {"confusion": None, "labels": None, "numbers": None}
    table: dict[str, Any] | None
    if record.similarities:
        title, table = "Texts least like their completions", unlike_texts(rows, record.similarities)
    elif "labels" in test:
        title, table = "Most confident mistakes", label_mistakes(rows)
        parts["labels"] = test["labels"]
    elif "r2" in test:
        title, table = "Largest errors", number_mistakes(rows)
        parts["numbers"] = number_chart(rows)
    else:
        title, table = "Most confident mistakes", mistakes(rows)
        parts["confusion"] = confusion(rows)
    return {**parts, "mistakes": table, "mistakes_title": title}


def _figures(record: RunRecord) -> dict[str, Any]:
    metrics, intervals = record.metrics, _Intervals(record)
    names = [name for name in SHOWN if name in metrics["test"]]
    # Of many columns the first ones are in view.
    splits = ("validation", "test") if len(names) <= MAX_NAMES else ("test", "validation")
    columns = [(split, name) for split in splits for name in names]
    columns += [("test", name) for name in ("exact_match", "rouge_l") if name in metrics["test"]]
    lines = [_line("prompts", metrics, "", columns, intervals, highlight=True)]
    if metrics.get("baseline"):
        lines.insert(0, _line(metrics["baseline"]["kind"], metrics["baseline"], "baseline.", columns, intervals))
        difference = "reduction" if "perplexity" in names else "gain"
        lines.append({**_line(difference, metrics["gain"], "gain.", columns, None), "form": "+.4f"})
    sizes = [(f"parameters: {name}", value, f"parameters.{name}") for name, value in metrics["parameters"].items()]
    sizes.append(("adapter, bytes", metrics["adapter_bytes"], "adapter_bytes"))
    if metrics.get("peak_memory"):
        sizes.append(("peak memory, bytes", metrics["peak_memory"], "peak_memory"))
    return {"scores": lines, "score_columns": columns, "interval_note": _interval_note(names), "sizes": sizes}


def _interval_note(names: Sequence[str]) -> str:
    note = "Below a score: its 95 % interval over test examples"
    if "loss" in names:
        return f"{note} (Wilson's for exact matches, bootstrap for ROUGE-L; losses have none)."
    if "accuracy" not in names:
        note = f"A gain is positive where the prompts are better. {note}"
    others = "" if "accuracy" in names else "; the others have none"
    return f"{note} ({', '.join(INTERVALS[name] for name in names if name in INTERVALS)}{others})."


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
        if name in ("accuracy", "subset_accuracy"):
            return share_interval(value, examples["examples"])
        if name == "micro_f1" and not place and self.record.predictions:
            return micro_f1_interval([(set(row["prediction"]), set(row["label"])) for row in self.record.predictions])
        if name == "r2" and not place and self.record.predictions:
            rows = self.record.predictions
            return r2_interval([row["prediction"] for row in rows], [row["label"] for row in rows])
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
    measure = next(name for name in MEASURES if name in test)
    result = f"a test {MEASURES[measure]} of {test[measure]:.4f}"
    if metrics.get("baseline"):
        result += f", against {metrics['baseline']['test'][measure]:.4f} of the {metrics['baseline']['kind']}"
    ended = ", where training ended early," if metrics["training"].get("stopped_early") else ""
    return (
        f"Prompts at {listed}{searcher} of the frozen backbone {backbone} were trained for "
        f"{metrics['training']['steps']:,} steps{ended} and reach {result}."
    )
