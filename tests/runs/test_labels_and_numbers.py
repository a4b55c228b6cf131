"""Runs with several labels and with numbers, end to end on a tiny backbone, and what is done with their adapters."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sptune.cli.commands import main
from sptune.errors import InputError
from sptune.runs.options.run_options import RECORDS, RunOptions
from sptune.runs.run import Run, fit, search, train
from sptune.saved_adapters.adapter_pool import AdapterPool
from sptune.saved_adapters.inference import evaluate, inspect, predict
from tiny_adapters import write_tiny_adapter
from tiny_runs import write_labels_or_numbers

KINDS = ("multi_label", "regression")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, masked_lm: str) -> dict[str, Run]:
    """A finished run of each kind, whose search has gates."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        files = {
            f"{role}_file": write_labels_or_numbers(folder / f"{role}.csv", kind, size, seed)
            for seed, (role, size) in enumerate((("train", 80), ("validation", 24), ("test", 40)))
        }
        made[kind] = fit(
            **files, model=masked_lm, task_kind=kind, searcher="spt_darts", num_prompt_layers=2, bottleneck_dim=8,
            search_steps=6, max_steps=100, batch_size=8, output_dir=str(folder / "run"),
        )  # fmt: skip
    return made


@pytest.fixture(params=KINDS)
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


def test_file(run: Run) -> Path:
    return run.output_dir.parent / "test.csv"


test_file.__test__ = False  # type: ignore[attr-defined]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prompts_learn_labels_and_numbers_better_than_the_linear_probe(runs: dict[str, Run]) -> None:
    labels, numbers = runs["multi_label"].metrics, runs["regression"].metrics
    assert labels["test"]["micro_f1"] > 0.8
    assert labels["gain"]["test"]["hamming_loss"] > 0
    assert numbers["test"]["r2"] > 0.5
    assert numbers["gain"]["test"]["rmse"] > 0
    gain = numbers["baseline"]["test"]["rmse"] - numbers["test"]["rmse"]
    assert numbers["gain"]["test"]["rmse"] == pytest.approx(gain, abs=1e-6)
    assert "labels" not in labels["gain"]["test"]


def test_metrics_are_those_of_the_predictions(runs: dict[str, Run]) -> None:
    rows = read_lines(runs["multi_label"].output_dir / "predictions.jsonl")
    right = [set(row["prediction"]) == set(row["label"]) for row in rows]
    assert runs["multi_label"].metrics["test"]["subset_accuracy"] == pytest.approx(np.mean(right))
    assert [] in [row["label"] for row in rows]
    for row in rows:
        assert row["prediction"] == [name for name, probability in row["scores"].items() if probability >= 0.5]
    rows = read_lines(runs["regression"].output_dir / "predictions.jsonl")
    errors = [row["prediction"] - row["label"] for row in rows]
    assert runs["regression"].metrics["test"]["rmse"] == pytest.approx(np.mean(np.square(errors)) ** 0.5, rel=1e-4)
    assert set(rows[0]) == {"text", "label", "prediction"}


def test_a_saved_adapter_scores_and_predicts_as_the_run_did(run: Run, tmp_path: Path) -> None:
    again, measured = evaluate(run.adapter_dir, test_file(run)), dict(run.metrics["test"])
    assert again.pop("labels", None) == measured.pop("labels", None)
    assert again == pytest.approx(measured, rel=1e-5)
    texts = tmp_path / "texts.csv"
    texts.write_text("\n".join(line.rsplit(",", 1)[0] for line in test_file(run).read_text().splitlines()) + "\n")
    predicted = predict(run.output_dir, texts)
    kept = read_lines(run.output_dir / "predictions.jsonl")
    for row, before in zip(predicted, kept, strict=True):
        assert row.get("scores", row["prediction"]) == pytest.approx(
            before.get("scores", before["prediction"]), abs=1e-3
        )


def test_the_code_of_the_model_card_gives_the_same(run: Run) -> None:
    card = (run.adapter_dir / "README.md").read_text()
    row = read_lines(run.output_dir / "predictions.jsonl")[0]
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(run.adapter_dir))
    out = StringIO()
    with redirect_stdout(out):
        exec(code.replace("A text.", row["text"]), {})  # the user's own words
    printed = out.getvalue().splitlines()[-1]
    if isinstance(row["prediction"], list):
        assert printed == str(row["prediction"])
        assert "| good |" in card
    else:
        assert float(printed) == pytest.approx(row["prediction"], rel=1e-4)


def test_one_model_serves_classes_labels_and_numbers(runs: dict[str, Run], masked_lm: str, tmp_path: Path) -> None:
    films = write_tiny_adapter(tmp_path / "films", masked_lm, 1, labels=("good", "bad", "fine", "dull"))
    folders = {"films": films, **{kind: run.adapter_dir for kind, run in runs.items()}}
    rows = {kind: read_lines(run.output_dir / "predictions.jsonl")[:3] for kind, run in runs.items()}
    requests = [(name, row["text"]) for kind in KINDS for row in rows[kind] for name in ("films", kind)]
    answers = AdapterPool(folders).predict(requests)
    for (name, text), answer in zip(requests, answers, strict=True):
        if name == "films":
            assert set(answer["scores"]) == {"good", "bad", "fine", "dull"}
            continue
        before = next(row for row in rows[name] if row["text"] == text)
        assert answer.get("scores", answer["prediction"]) == pytest.approx(
            before.get("scores", before["prediction"]), abs=1e-3
        )


def test_config_repeats_the_run_and_a_finished_one_is_resumed(run: Run, tmp_path: Path) -> None:
    config = yaml.safe_load((run.output_dir / "config.yaml").read_text())
    if config["task_kind"] == "multi_label":
        assert config["label_threshold"] == 0.5
        assert config["label_separator"] == "|"
    assert RunOptions.from_mapping(config, "config.yaml").lasting() == {
        name: value for name, value in config.items() if name not in RECORDS
    }
    assert fit(output_dir=str(run.output_dir), resume=True).metrics == run.metrics
    assert inspect(run.output_dir)["task"]["kind"] == config["task_kind"]


def test_the_threshold_decides_which_labels_are_predicted(runs: dict[str, Run], masked_lm: str, tmp_path: Path) -> None:
    data = runs["multi_label"].output_dir.parent / "train.csv"
    again = train(
        train_file=str(data), model=masked_lm, task_kind="multi_label", label_threshold=0.01, prompt_layers=[1],
        max_steps=2, few_shot=24, linear_probe=False, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert again.metrics["test"]["labels"]["good"]["recall"] == 1.0
    assert all(row["prediction"] == ["bad", "good"] for row in read_lines(again.output_dir / "predictions.jsonl"))
    assert evaluate(again.adapter_dir, data)["labels"]["bad"]["recall"] == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_causal_models_and_their_own_heads_learn_them_too(kind: str, causal_lm: str, tmp_path: Path) -> None:
    run = train(
        train_file=write_labels_or_numbers(tmp_path / "train.csv", kind, 60), model=causal_lm, task_kind=kind,
        prompt_layers=[1], max_steps=3, linear_probe=False, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    rows = read_lines(run.output_dir / "predictions.jsonl")
    again = AdapterPool(run.adapter_dir).predict([("run", row["text"]) for row in rows])
    key = "scores" if kind == "multi_label" else "prediction"
    assert [row[key] for row in again] == [pytest.approx(row[key], rel=1e-4, abs=1e-4) for row in rows]


def test_an_interrupted_run_goes_on_to_the_same_result(runs: dict[str, Run], masked_lm: str, tmp_path: Path) -> None:
    options = {
        "train_file": str(runs["regression"].output_dir.parent / "train.csv"), "model": masked_lm, "max_steps": 10,
        "task_kind": "regression", "prompt_layers": [2], "bottleneck_dim": 4, "linear_probe": False,
    }  # fmt: skip
    whole = train(**options, output_dir=str(tmp_path / "whole"))
    stopped = train(**options, output_dir=str(tmp_path / "stopped"), keep_checkpoints=True)
    for name in ("metrics.json", "report.html"):
        (stopped.output_dir / name).unlink()
    for checkpoint in (stopped.output_dir / "checkpoints" / "train").iterdir():
        if checkpoint.name == "checkpoint-10":
            (checkpoint / "trainer_state.json").write_text("")  # cut off while it was written
    resumed = train(**options, output_dir=str(stopped.output_dir), resume=True)
    assert resumed.metrics["test"] == pytest.approx(whole.metrics["test"])


def test_the_search_alone_takes_them(runs: dict[str, Run], masked_lm: str, tmp_path: Path) -> None:
    data = str(runs["regression"].output_dir.parent / "train.csv")
    found = search(
        train_file=data, model=masked_lm, task_kind="regression", searcher="darts", num_prompt_layers=1, search_steps=4,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert len(found.prompt_layers) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task_kind": "multi_label", "template": "{text} [MASK]", "label_words": {"a": "b"}},
            "template=.* label words",
        ),
        ({"task_kind": "regression", "label_words": {"a": "b"}}, "label_words=.*predicts a number with a trained head"),
        ({"task_kind": "regression", "labels": ["a", "b"]}, "labels=.*predicts a number; leave it out"),
        ({"task_kind": "regression", "task": "sst2"}, "task='sst2' predicts one class .*predicts a number"),
        ({"task_kind": "multi_label", "task": "sst2"}, "predicts any number of labels; leave one of them out"),
        ({"task_kind": "regression", "max_new_tokens": 4}, "is of models that write text"),
        ({"task_kind": "regression", "label_threshold": 0.4}, "add task_kind='multi_label'"),
        ({"task_kind": "classifier", "label_separator": ";"}, "add task_kind='multi_label'"),
        ({"task_kind": "generate", "label_separator": ";"}, "writes text; leave it out"),
        ({"task_kind": "multi_label", "label_threshold": 1.0}, "above 0 and below 1"),
        ({"task_kind": "multi_label", "label_separator": ""}, "label_separator is empty"),
        ({"task_kind": "multi-label"}, "choose one of verbalizer, classifier, multi_label, regression, generate"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunOptions(**options)


def test_data_that_do_not_fit_are_refused_before_a_model_is_read(tmp_path: Path) -> None:
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "".join(f"text {number},{number}\n" for number in range(40)) + "one more,n/a\n")
    with pytest.raises(InputError, match=r"train\.csv:42, field 'label', value 'n/a': not a number"):
        fit(model="no/such-model", train_file=str(data), task_kind="regression", output_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_evaluation_refuses_what_the_adapter_cannot_be_compared_with(runs: dict[str, Run]) -> None:
    with pytest.raises(InputError, match=r"test\.csv:3, field 'label', value 'good.bad': not a number"):
        evaluate(runs["regression"].adapter_dir, test_file(runs["multi_label"]))
    with pytest.raises(InputError, match=r"none of its labels|is not one of 'bad', 'good'"):
        evaluate(runs["multi_label"].adapter_dir, test_file(runs["regression"]))


def test_the_command_line_prints_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--adapter", str(run.adapter_dir), "--test-file", str(test_file(run))])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    if "labels" in run.metrics["test"]:
        assert "average precision" in printed
        assert f"{run.metrics['test']['labels']['good']['recall']:.4f}" in printed
    else:
        assert f"spearman   {run.metrics['test']['spearman']:.4f}" in printed
    with pytest.raises(SystemExit):
        main(["fit", "--output", str(run.output_dir), "--resume"])
    printed = capsys.readouterr().out
    assert "gain" in printed
    assert ("Hamming loss" if "labels" in run.metrics["test"] else "pearson") in printed


def test_the_report_shows_labels_and_numbers(runs: dict[str, Run]) -> None:
    labels, numbers = ((runs[kind].output_dir / "report.html").read_text() for kind in KINDS)
    assert "Each label on test data" in labels
    assert "micro F1 of" in labels
    assert "Most confident mistakes" in labels
    assert 'data-chart="predicted-numbers"' in numbers
    assert "Largest errors" in numbers
    assert "R² of" in numbers
    assert "Confusion matrix" not in labels + numbers
