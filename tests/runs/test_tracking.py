"""Trackers of a run: what TensorBoard has of it afterwards, and which trackers are refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sptune.errors import InputError
from sptune.runs.run import fit, search, train

TRACKED = {"report_to": ["tensorboard"], "learning_rate": 0.02}


def read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """Values by step of each curve that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str], masked_lm: str) -> tuple[Any, Any]:
    """A run with gates, and its curves."""
    folder = tmp_path_factory.mktemp("tracked") / "films"
    own = {"model": masked_lm, "bottleneck_dim": 4, "searcher": "spt_darts", "search_steps": 6, "max_steps": 10}
    run = fit(**data, **own, **TRACKED, batch_size=8, output_dir=folder)
    return run, read_curves(folder)


def test_gates_and_losses_of_the_search_are_curves(tracked: tuple[Any, Any]) -> None:
    run, curves = tracked
    search = read(run.output_dir / "search.json")
    for place, layer in enumerate(search["candidate_layers"]):
        gates = {entry["step"]: entry["gates"][place] for entry in search["history"]}
        assert curves[f"train/search/gate/layer_{layer}"] == pytest.approx(gates)
        assert curves[f"train/search/score/layer_{layer}"] == {6: pytest.approx(search["scores"][place])}
    for name in ("weight_loss", "gate_loss", "consistency"):
        known = {entry["step"]: entry[name] for entry in search["history"] if entry[name] is not None}
        assert curves[f"train/search/{name}"] == pytest.approx(known)


def test_the_final_training_has_the_names_of_trainer(tracked: tuple[Any, Any]) -> None:
    run, curves = tracked
    history = read(run.output_dir / "training_history.json")
    for tag, name in (("train/loss", "training_loss"), ("eval/loss", "validation_loss")):
        assert curves[tag] == pytest.approx({entry["step"]: entry[name] for entry in history if name in entry})
    assert max(curves["eval/score"].values()) == pytest.approx(run.metrics["training"]["best_validation_score"])


def test_scores_of_the_evaluation_and_of_the_linear_probe_are_told(tracked: tuple[Any, Any]) -> None:
    run, curves = tracked
    for stage, metrics in (("final", run.metrics), ("linear_probe", run.metrics["baseline"])):
        for split, prefix in (("validation", "eval"), ("test", "test")):
            assert curves[f"{prefix}/{stage}/accuracy"][10] == pytest.approx(metrics[split]["accuracy"])
    assert sorted(curves["eval/linear_probe/score"]) == [2, 4, 6, 8, 10]


def test_a_run_is_one_run_of_the_tracker_with_the_arguments_of_the_final_training(tracked: tuple[Any, Any]) -> None:
    run, _ = tracked
    assert len(list((run.output_dir / "tensorboard").rglob("events.*"))) == 1
    events = EventAccumulator(str(run.output_dir / "tensorboard"))
    events.Reload()
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    arguments = json.loads(text)
    assert (arguments["max_steps"], arguments["run_name"]) == (10, "films")


def test_the_results_are_those_of_a_run_without_a_tracker(
    tracked: tuple[Any, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    run, _ = tracked
    fit(**{**options, "searcher": "spt_darts", "search_steps": 6}, learning_rate=0.02, output_dir=tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "predictions.jsonl").read_text() == (run.output_dir / "predictions.jsonl").read_text()
    assert (tmp_path / "config.yaml").read_text() == (run.output_dir / "config.yaml").read_text()


@pytest.mark.parametrize("searcher", ["fair", "halving", "random"])
def test_every_search_tells_the_scores_of_its_layers(searcher: str, options: dict[str, Any], tmp_path: Path) -> None:
    own = {**options, **TRACKED, "searcher": searcher, "num_prompt_layers": 1}
    if searcher == "random":
        del own["search_steps"]  # it trains nothing
    search(**own, output_dir=tmp_path)
    result, curves = read(tmp_path / "search.json"), read_curves(tmp_path)
    for layer, score in zip(result["candidate_layers"], result["scores"], strict=True):
        assert curves[f"train/search/score/layer_{layer}"] == {result["steps"]: pytest.approx(score)}
    if searcher == "halving":
        rungs = {entry["step"]: entry["losses"][0] for entry in result["history"] if entry["losses"][0] is not None}
        assert curves["train/search/loss/layer_0"] == pytest.approx(rungs)
    if searcher == "fair":
        losses = {one["step"]: one["loss"] for one in result["history"]}
        assert curves["train/search/loss"] == pytest.approx(losses, abs=1e-4)  # transformers 4 rounds what it logs


def test_a_repeated_run_leaves_no_curves_of_the_one_before(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"prompt_layers": [1], "linear_probe": False, "max_steps": 2}
    train(**options, **TRACKED, output_dir=tmp_path)
    train(**options, output_dir=tmp_path, overwrite=True)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papyrus", "report_to='papyrus' is not a tracker that transformers knows; choose from azure_ml, clearml,"),
        ("clearml", "Install it with: pip install clearml"),
        ("comet_ml", "Install it with: pip install comet-ml"),
    ],
)
def test_trackers_that_are_not_there_are_refused_before_anything_is_read(
    name: str, message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    broken = {**options, "model": "someone/surely-not-there-0", "train_file": "nowhere.csv"}
    with pytest.raises(InputError, match=re.escape(message)):
        fit(**broken, report_to=["tensorboard", name], output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(InputError, match="Install it with: pip install tensorboard"):
        fit(**options, report_to=["tensorboard"], output_dir=tmp_path / "run")
