"""Folders of a run and of a comparison as their files are, with texts that a page must not run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sptune import SPTConfig
from sptune.search import SearchConfig, SearchResult
from sptune.tasks.label_metrics import label_metrics
from sptune.tasks.number_metrics import number_metrics

SCRIPT = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'> & a </script> dull film"
LABELS = ("fun", "sad</script>")
METRICS: dict[str, Any] = {
    "task": "films</title><script>window.attacked = 3</script>",
    "model": "/models/tiny",
    "prompt_layers": [1],
    "train": {"accuracy": 0.9, "score": 0.9, "examples": 40},
    "validation": {"accuracy": 0.85, "score": 0.85, "examples": 20},
    "test": {"accuracy": 0.8, "score": 0.8, "examples": 20},
    "baseline": {
        "kind": "linear probe",
        "validation": {"accuracy": 0.7, "score": 0.7, "examples": 20},
        "test": {"accuracy": 0.65, "score": 0.65, "examples": 20},
    },
    "gain": {"validation": {"accuracy": 0.15, "score": 0.15}, "test": {"accuracy": 0.15, "score": 0.15}},
    "parameters": {"trainable": 1234, "generators": 1000, "head": 234, "total": 98765},
    "training": {"steps": 40, "best_step": 40},
    "adapter_bytes": 4321,
    "seconds": {"data": 0.07, "train": 12.5, "total": 12.57},
}


def write_run(folder: Path) -> Path:
    """A run without a search, of twenty test examples of which four are wrong."""
    rows = []
    for number in range(20):
        label = ("neg</script>", "pos")[number % 2]
        surely = 0.5 + number / 50
        prediction = label if number >= 4 else ("pos", "neg</script>")[number % 2]
        other = "pos" if prediction != "pos" else "neg</script>"
        scores = dict(sorted({prediction: surely, other: 1 - surely}.items()))
        text = f"{SCRIPT} {number}"
        rows.append({"text": text, "label": label, "prediction": prediction, "scores": scores})
    history = [{"step": step, "training_loss": 1 / step} for step in range(1, 41)]
    history += [{"step": step, "validation_loss": 2 / step} for step in (20, 40)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "training_history.json").write_text(json.dumps(history))
    return folder


def write_diverged_search(folder: Path) -> Path:
    """A run whose search trained several networks, of which some diverged; its file has -Infinity, as older ones."""
    write_run(folder)
    search = SearchResult(
        prompt_layers=[1], candidate_layers=[1, 2, 3], scores=[-0.5, -0.75, -0.25], gates=None,
        history=[{"step": 5, "losses": [0.5, None, None]}, {"step": 10, "losses": [0.4, None, None]}],
        config=SPTConfig(prompt_layers=[1]), search=SearchConfig(searcher="halving"), seconds=1.0, steps=10,
    )  # fmt: skip
    written = json.dumps(search.to_dict())
    (folder / "search.json").write_text(written.replace("-0.75", "-Infinity").replace("-0.25", "null"))
    return folder


def write_label_run(folder: Path) -> Path:
    """A run with two labels on four test examples; its surest mistake is at the third."""
    probabilities = [(0.9, 0.2), (0.6, 0.1), (0.99, 0.7), (0.2, 0.3)]
    true: list[list[str]] = [["fun"], [], ["sad</script>"], []]
    rows = [
        {
            "text": f"{SCRIPT} {number}",
            "label": labels,
            "prediction": [name for name, value in zip(LABELS, own, strict=True) if value >= 0.5],
            "scores": dict(zip(LABELS, own, strict=True)),
        }
        for number, (own, labels) in enumerate(zip(probabilities, true, strict=True))
    ]
    has = np.array([[name in labels for name in LABELS] for labels in true])
    measured = {**label_metrics(LABELS, np.array(probabilities), has, 0.5), "examples": 4}
    return _write_measured(folder, measured, {"micro_f1": 0.25, "macro_f1": 0.25, "subset_accuracy": 0.5}, rows)


def write_number_run(folder: Path) -> Path:
    """A run that predicts numbers; its largest error is at the last test example."""
    rows: list[dict[str, Any]] = [
        {"text": f"{SCRIPT} {number}", "label": float(number), "prediction": number + 0.25} for number in range(11)
    ]
    rows.append({"text": f"{SCRIPT} last", "label": 3.0, "prediction": 8.5})
    numbers = [np.array([row[name] for row in rows]) for name in ("prediction", "label")]
    measured = {**number_metrics(*numbers), "examples": 12}
    return _write_measured(folder, measured, {"r2": 0.0, "rmse": 3.0, "pearson": None}, rows)


def _write_measured(
    folder: Path, measured: dict[str, Any], without: dict[str, Any], rows: list[dict[str, Any]]
) -> Path:
    probe = {"kind": "linear probe", **{name: {**without, "examples": 4} for name in ("validation", "test")}}
    gain = {name: {metric: 0.1 for metric, value in without.items() if value is not None} for name in probe}
    splits = {name: measured for name in ("train", "validation", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({**METRICS, **splits, "baseline": probe, "gain": gain}))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_generation_run(folder: Path) -> Path:
    """A run that wrote twelve texts; its last one has nothing in common with the completion."""
    measured = {"loss": 1.5, "perplexity": 4.48, "examples": 12}
    without = {"loss": 2.5, "perplexity": 12.18, "examples": 12}
    written = {"exact_match": 11 / 12, "rouge_l": 11 / 12, "generated_examples": 12}
    gain = {name: {"loss": 1.0, "perplexity": 7.7} for name in ("validation", "test")}
    metrics = {
        **METRICS, "train": measured, "validation": measured, "test": {**measured, **written},
        "baseline": {"kind": "zero-shot", "validation": without, "test": without}, "gain": gain,
    }  # fmt: skip
    talk = [{"role": "user", "content": SCRIPT}]
    rows = [{"prompt": talk, "completion": f"word {number}", "generated": f"word {number}"} for number in range(11)]
    rows.append({"prompt": talk, "completion": "one thing", "generated": "something else"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def summary_line(method: str, mean: float, parameters: int, seconds: float, **more: Any) -> dict[str, Any]:
    line: dict[str, Any] = {
        "method": method, "runs": 6, "failed": 0, "scores": {"a": mean - 0.1, "b": mean + 0.1}, "mean": mean,
        "deviation": 0.01, "difference": None, "low": None, "high": None, "parameters": parameters,
        "seconds": seconds, "memory": None, "adapter_bytes": 4 * parameters,
    }  # fmt: skip
    return {**line, **more}


def write_comparison(folder: Path) -> Path:
    """Three methods on two tasks."""
    lines = [
        summary_line("spt", 0.8, 2000, 10.0),
        summary_line("lora", 0.75, 90000, 20.0, difference=-0.05, low=-0.08, high=-0.02),
        summary_line("<script>window.attacked = 4</script>", 0.85, 0, 5.0, difference=0.05, low=-0.01, high=0.11),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(lines))
    (folder / "study.yaml").write_text("against: spt\n")
    return folder
