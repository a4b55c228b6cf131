"""`fit`, `search`, `train` end to end on tiny backbones: what they write, refuse and resume, and what can be loaded."""

import importlib.metadata
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

from sptune import MeanPooledClassifier, SPTConfig
from sptune.cli.commands import main
from sptune.errors import InputError, SptuneError
from sptune.modeling.loading import _name_inside
from sptune.runs import plan as preparation
from sptune.runs import resolution
from sptune.runs.options.run_options import RunOptions
from sptune.runs.progress import Monitor
from sptune.runs.run import fit, search, train
from sptune.saved_adapters.adapter_pool import AdapterPool
from sptune.saved_adapters.inference import evaluate, inspect, predict
from sptune.search import SearchResult
from sptune.search.searchers import SEARCHERS

RUN_FILES = {
    "config.yaml",
    "adapter",
    "search.json",
    "metrics.json",
    "predictions.jsonl",
    "training_history.json",
    "report.html",
    "search.png",
    "search.svg",
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Interrupter(Monitor):
    """Presses Ctrl-C at a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.title, self.at, self.done = stage, step, 0
        self.current = ""

    def stage(self, title: str, steps: int | None = None) -> None:
        self.current = title

    def step(self) -> None:
        if self.title in self.current:
            self.done += 1
            if self.done == self.at:
                raise KeyboardInterrupt


LABEL_WORDS = {"template": "{text} . It was [MASK]", "label_words": {"good": "good", "bad": "bad"}}

# -- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str], masked_lm: str) -> Any:
    """One finished classifier run that several tests look at."""
    return fit(
        **data,
        model=masked_lm,
        output_dir=str(tmp_path_factory.mktemp("runs") / "run"),
        bottleneck_dim=4,
        searcher="fair",
        search_steps=5,
        max_steps=40,
        batch_size=8,
    )


def test_fit_writes_the_whole_folder_and_nothing_else(finished: Any) -> None:
    assert {path.name for path in finished.output_dir.iterdir()} == RUN_FILES
    names = {path.name for path in finished.adapter_dir.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "task.json", "README.md"}


def test_a_report_that_a_killed_run_lacks_is_written_when_it_is_resumed(finished: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.output_dir, tmp_path / "run")
    (folder / "report.html").unlink()
    fit(output_dir=str(folder), resume=True)
    assert "<h1>" in (folder / "report.html").read_text()


def test_metrics_hold_scores_baseline_and_their_difference(finished: Any) -> None:
    metrics = json.loads((finished.output_dir / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert metrics["prompt_layers"] == finished.prompt_layers
    assert [metrics[split]["examples"] for split in ("train", "validation", "test")] == [48, 16, 24]
    assert metrics["baseline"]["kind"] == "linear probe"
    gain = metrics["test"]["accuracy"] - metrics["baseline"]["test"]["accuracy"]
    assert metrics["gain"]["test"]["accuracy"] == pytest.approx(gain, abs=1e-6)
    assert metrics["search"]["steps"] == 5
    assert metrics["seconds"]["total"] >= metrics["seconds"]["search"] > 0


def test_metrics_count_parameters_and_bytes_of_what_is_saved(finished: Any) -> None:
    parameters = finished.metrics["parameters"]
    assert parameters["generators"] == len(finished.prompt_layers) * (32 * 4 + 4 + 4 * 32 + 32)
    assert parameters["head"] == 32 * 2 + 2
    assert parameters["trainable"] == parameters["generators"] + parameters["head"]
    weights = finished.adapter_dir / "adapter_model.safetensors"
    assert finished.metrics["adapter_bytes"] == weights.stat().st_size
    assert finished.metrics["peak_memory"] > weights.stat().st_size
    about = inspect(finished.adapter_dir)
    assert about["parameters"]["total"] == parameters["trainable"]
    assert about["prompt_layers"] == finished.prompt_layers


def test_prompts_learn_what_the_data_say(finished: Any) -> None:
    assert finished.metrics["train"]["accuracy"] > 0.8


def test_saved_adapter_scores_and_predicts_as_the_run_did(finished: Any, data: dict[str, str], tmp_path: Path) -> None:
    again = evaluate(finished.adapter_dir, data["test_file"])
    assert again == finished.metrics["test"]
    rows = [{"text": row["text"]} for row in read_lines(Path(data["test_file"]))]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predicted = predict(finished.output_dir, texts, tmp_path / "out" / "predictions.jsonl")
    assert predicted == read_lines(tmp_path / "out" / "predictions.jsonl")
    recorded = read_lines(finished.output_dir / "predictions.jsonl")
    assert [row["prediction"] for row in predicted] == [row["prediction"] for row in recorded]
    for row, kept in zip(predicted, recorded, strict=True):
        assert row["scores"] == pytest.approx(kept["scores"], abs=1e-5)


def test_predictions_never_take_the_place_of_a_file_unasked(
    finished: Any, data: dict[str, str], tmp_path: Path
) -> None:
    texts, there, linked = tmp_path / "texts.jsonl", tmp_path / "there.jsonl", tmp_path / "linked.jsonl"
    before = Path(data["test_file"]).read_text()
    for path in (texts, there):
        path.write_text(before)
    linked.symlink_to(texts)
    for use in (partial(predict, finished.adapter_dir, texts), partial(evaluate, finished.adapter_dir, texts)):
        with pytest.raises(InputError, match=r"there\.jsonl: exists already; .*--overwrite"):
            use(output=there)
        for same in (texts, linked):
            with pytest.raises(InputError, match="jsonl: is the data"):
                use(output=same, overwrite=True)
        with pytest.raises(InputError, match="does not lie in a folder"):
            use(output=there / "out.jsonl")
        weights = finished.adapter_dir / "adapter_model.safetensors"
        for other in (weights, finished.output_dir / "config.yaml", finished.output_dir / "metrics.json"):
            kept = other.read_bytes()
            with pytest.raises(InputError, match="holds something else than JSON Lines"):
                use(output=other, overwrite=True)
            assert other.read_bytes() == kept
        assert texts.read_text() == there.read_text() == before
    for verb, option in (("predict", "--input"), ("evaluate", "--test-file")):
        there.write_text(before)
        command = [verb, "--adapter", str(finished.adapter_dir), option, str(texts), "--output", str(there)]
        for arguments, code in ((command, 2), ([*command, "--overwrite"], 0)):
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert ended.value.code == code
        assert "prediction" in read_lines(there)[0]


@pytest.mark.parametrize("place", ["/proc/nothing/out.jsonl", "x" * 247 + ".jsonl", "x" * 260])
def test_a_place_where_no_predictions_can_be_written_is_found_before_the_adapter_is_read(
    data: dict[str, str], tmp_path: Path, place: str
) -> None:
    for use in (predict, evaluate):
        with pytest.raises(InputError, match=rf"{place}: cannot be written \(.*name another file"):
            use(tmp_path / "no adapter", data["test_file"], output=tmp_path / "new" / place)
        with pytest.raises(InputError, match="no adapter: there is no such folder"):
            use(tmp_path / "no adapter", data["test_file"], output=tmp_path / "new" / "out.jsonl")
    assert not list(tmp_path.iterdir())


def test_texts_that_predictions_would_replace_are_refused(
    finished: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sptune.saved_adapters.adapter_pool.load_backbone", None)  # nothing is loaded
    for column in ("prediction", "scores", "label"):
        file = tmp_path / f"{column}.jsonl"
        rows = [{column: row["text"], "target": row["label"]} for row in read_lines(Path(options["test_file"]))]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        refusal = rf"text_columns='{column}': the output has a field of this name.*rename the column"
        names = {"text_columns": [column], "label_column": "target"}
        with pytest.raises(InputError, match=refusal):
            evaluate(finished.adapter_dir, file, **names)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=refusal):
            fit(**{**options, "train_file": str(file), "validation_file": None, "test_file": None, **names},
                output_dir=tmp_path / "run")  # fmt: skip
        assert not (tmp_path / "run").exists()
        if column != "label":  # there is none in what predict writes
            with pytest.raises(InputError, match=refusal):
                predict(finished.adapter_dir, file, text_columns=[column])


def test_predictions_belong_to_their_texts(finished: Any, data: dict[str, str]) -> None:
    rows = read_lines(finished.output_dir / "predictions.jsonl")
    asked = read_lines(Path(data["test_file"]))
    assert [(row["text"], row["label"]) for row in rows] == [(row["text"], row["label"]) for row in asked]
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert right / len(rows) == pytest.approx(finished.metrics["test"]["accuracy"])
    assert all(max(row["scores"], key=row["scores"].get) == row["prediction"] for row in rows)


def test_model_card_shows_how_to_load_and_its_lines_work(finished: Any) -> None:
    card = (finished.adapter_dir / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)  # type: ignore[union-attr]
    assert "import sptune" in code
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(finished.adapter_dir)), names)
    loaded = AdapterPool(finished.adapter_dir).model
    batch = {"input_ids": torch.tensor([[2, 5, 20, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    assert isinstance(names["model"], PeftModel)
    torch.testing.assert_close(names["model"].eval()(**batch).logits, loaded(**batch).logits)


def test_config_fed_back_repeats_the_run(options: dict[str, Any], tmp_path: Path) -> None:
    first = fit(**options, output_dir=tmp_path / "first", seed=3)
    config = yaml.safe_load((first.output_dir / "config.yaml").read_text())
    assert config["learning_rate"] == 5e-3
    assert config["head_pooling"] == "mean"
    # PyTorch's builds for CUDA give another version of themselves.
    assert config["versions"]["torch"] == importlib.metadata.version("torch")
    second = fit(**config, output_dir=tmp_path / "second")
    assert (second.output_dir / "predictions.jsonl").read_text() == (first.output_dir / "predictions.jsonl").read_text()
    assert second.prompt_layers == first.prompt_layers
    again = yaml.safe_load((second.output_dir / "config.yaml").read_text())
    assert again == config


def test_search_alone_writes_only_the_search(options: dict[str, Any], tmp_path: Path) -> None:
    run = search(**options, output_dir=tmp_path / "run", num_prompt_layers=1)
    assert {path.name for path in run.output_dir.iterdir()} == {
        "config.yaml",
        "search.json",
        "search.png",
        "search.svg",
    }
    assert len(run.prompt_layers) == 1


def test_train_takes_given_layers(options: dict[str, Any], tmp_path: Path) -> None:
    run = train(**options, output_dir=tmp_path / "run", prompt_layers=[0, 2], linear_probe=False)
    assert run.prompt_layers == [0, 2]
    assert "baseline" not in run.metrics
    assert {path.name for path in run.output_dir.iterdir()} == {
        "config.yaml", "adapter", "metrics.json", "predictions.jsonl", "training_history.json", "report.html",
    }  # fmt: skip


class Notes(Monitor):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_the_price_of_a_search_and_the_cache_are_told(options: dict[str, Any], tmp_path: Path) -> None:
    notes = Notes()
    fit(**options, output_dir=tmp_path / "run", candidate_layers=[1, 2], linear_probe=False, monitor=notes)
    assert any(text.startswith("Training the supernet will take about") for text in notes.texts)
    assert sum(text.startswith("Activation cache: layer") for text in notes.texts) == 2


@pytest.mark.parametrize(
    ("searcher", "layers"), [("all", list(range(14))), ("middle", [7]), ("fair", None)], ids=["all", "middle", "fair"]
)
def test_a_deep_backbone(
    options: dict[str, Any], deep_lm: str, tmp_path: Path, searcher: str, layers: list[int] | None
) -> None:
    steps = {"search_steps": 1, "max_steps": 1}
    changes = {**steps, "model": deep_lm, "searcher": searcher}
    if not SEARCHERS[searcher].trained:
        del options["search_steps"], changes["search_steps"]
    run = fit(**{**options, **changes}, output_dir=tmp_path / "run", linear_probe=False)
    assert run.prompt_layers == layers or (layers is None and all(layer % 2 == 0 for layer in run.prompt_layers))


def test_few_examples_are_not_searched_on_by_default(options: dict[str, Any], tmp_path: Path) -> None:
    del options["searcher"]
    run = fit(**options, num_prompt_layers=2, output_dir=tmp_path / "run", linear_probe=False)
    assert run.prompt_layers == [1, 2]
    remarks = SearchResult.load(run.output_dir / "search.json").remarks
    assert any(text.startswith("48 training examples are too few for a search") for text in remarks)
    assert not (run.output_dir / "search.png").exists()
    assert run.metrics["search"]["steps"] == 0


def test_steps_of_a_search_follow_from_those_of_the_training(options: dict[str, Any], tmp_path: Path) -> None:
    run = search(**{**options, "search_steps": None, "max_steps": 20}, output_dir=tmp_path / "run")
    assert yaml.safe_load((run.output_dir / "config.yaml").read_text())["search_steps"] == 5
    assert len(SearchResult.load(run.output_dir / "search.json").history) == 5
    long = RunOptions(**{**options, "search_steps": None, "max_steps": 4000, "output_dir": str(tmp_path / "long")})
    assert preparation.prepare("search", long, Monitor()).search_steps == 150


def test_settings_of_a_search_are_kept_where_it_has_them(options: dict[str, Any], tmp_path: Path) -> None:
    search(**{**options, "searcher": "spt_darts"}, output_dir=tmp_path / "gates", consistency="mse")
    search(**options, output_dir=tmp_path / "fair")
    kept = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("gates", "fair")]
    assert [(one["consistency"], one["gate_interval"]) for one in kept] == [("mse", 1), (None, None)]


def test_the_activation_cache_changes_nothing_but_time(options: dict[str, Any], tmp_path: Path) -> None:
    runs, notes = [], Notes()
    for name, cache in (("with", True), ("without", False)):
        runs.append(
            train(**options, output_dir=tmp_path / name, prompt_layers=[2], activation_cache=cache, monitor=notes)
        )
    assert "No activation cache: it is turned off." in notes.texts
    scores = [[row["scores"]["good"] for row in read_lines(run.output_dir / "predictions.jsonl")] for run in runs]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def pretend_bfloat16_kernels(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    for module in (preparation, resolution):
        monkeypatch.setattr(module, "has_bfloat16_kernels", lambda: there)


@pytest.fixture
def processor_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if PyTorch had kernels for bfloat16 on this processor; without them all is right, too, and slow."""
    pretend_bfloat16_kernels(monkeypatch, True)


@pytest.mark.usefixtures("processor_with_bfloat16")
def test_both_stages_run_in_bf16(options: dict[str, Any], tmp_path: Path) -> None:
    run = fit(**{**options, "max_steps": 40}, output_dir=tmp_path / "run", bf16=True, candidate_layers=[1, 2])
    assert run.metrics["train"]["accuracy"] > 0.8
    weights = safe_open(run.adapter_dir / "adapter_model.safetensors", "pt")
    assert all(weights.get_tensor(name).dtype == torch.float32 for name in weights.keys())  # noqa: SIM118


def test_a_processor_without_bfloat16_leaves_it_off(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_bfloat16_kernels(monkeypatch, False)
    notes, predictions = Notes(), []
    for bf16 in (False, True):
        assert not any("bfloat16" in text for text in notes.texts)
        folder = tmp_path / f"bf16-{bf16}"
        train(**options, output_dir=folder, prompt_layers=[2], linear_probe=False, bf16=bf16, monitor=notes)
        predictions.append(read_lines(folder / "predictions.jsonl"))
    assert predictions[0] == predictions[1]
    assert yaml.safe_load((folder / "config.yaml").read_text())["bf16"] is False
    assert any("bf16 is left off" in text for text in notes.texts)
    assert not any("dtype" in text for text in notes.texts)
    settings = {**options, "prompt_layers": [2], "linear_probe": False, "max_steps": 1}
    train(**settings, output_dir=tmp_path / "weights", dtype="bfloat16", monitor=notes)
    assert any("dtype is bfloat16" in text and "float32" in text for text in notes.texts)


@pytest.mark.usefixtures("processor_with_bfloat16")
def test_a_run_in_bf16_leaves_the_next_one_as_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    runs = [
        train(**options, output_dir=tmp_path / name, prompt_layers=[2], linear_probe=False, bf16=name == "short")
        for name in ("before", "short", "after")
    ]
    before, short, after = (
        [row["scores"]["good"] for row in read_lines(run.output_dir / "predictions.jsonl")] for run in runs
    )
    assert before == after != short


@pytest.mark.parametrize("searcher", ["fair", "halving", "random"])
def test_other_searchers_search_too(options: dict[str, Any], tmp_path: Path, searcher: str) -> None:
    if searcher == "random":
        del options["search_steps"]
    run = search(**{**options, "searcher": searcher}, output_dir=tmp_path / "run", num_prompt_layers=1)
    found = SearchResult.load(run.output_dir / "search.json")
    assert found.prompt_layers == run.prompt_layers
    assert found.gates is None
    assert (run.output_dir / "search.png").exists() == (searcher != "random")


class Bars(Monitor):
    """Counts the steps of each stage beside the number that was announced."""

    def __init__(self) -> None:
        self.announced: list[int | None] = []
        self.done: list[int] = []

    def stage(self, title: str, steps: int | None = None) -> None:
        self.announced.append(steps)
        self.done.append(0)

    def step(self) -> None:
        self.done[-1] += 1


@pytest.mark.parametrize("searcher", ["fair", "halving", "exhaustive"])
def test_no_stage_takes_other_steps_than_were_announced(options: dict[str, Any], tmp_path: Path, searcher: str) -> None:
    bars = Bars()
    fit(**{**options, "searcher": searcher}, output_dir=tmp_path / "run", monitor=bars)
    counted = [(steps, done) for steps, done in zip(bars.announced, bars.done, strict=True) if done]
    head, search, training = counted
    assert head[0] == head[1]
    assert training[0] == training[1]
    assert search[0] == (search[1] if searcher == "fair" else None)  # many networks: nothing is announced


def test_fixed_searcher_needs_no_search(options: dict[str, Any], tmp_path: Path) -> None:
    del options["search_steps"]
    run = fit(**{**options, "searcher": "middle"}, output_dir=tmp_path / "run", linear_probe=False)
    assert run.prompt_layers == [1]
    assert not (run.output_dir / "search.png").exists()
    config = yaml.safe_load((run.output_dir / "config.yaml").read_text())
    assert RunOptions.from_mapping(config, "again").search_steps is None


def test_checkpoints_stay_if_asked_for(options: dict[str, Any], tmp_path: Path) -> None:
    run = train(**options, output_dir=tmp_path / "run", prompt_layers="first", keep_checkpoints=True)
    assert list((run.output_dir / "checkpoints" / "train").glob("checkpoint-*"))


# -- kinds of tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["masked_lm", "causal_lm"])
def test_verbalizer_is_compared_with_zero_shot(
    backbone: str, options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options["model"] = request.getfixturevalue(backbone)
    run = train(**options, **LABEL_WORDS, output_dir=tmp_path / "run", prompt_layers=[1])
    metrics = run.metrics
    config = yaml.safe_load((run.output_dir / "config.yaml").read_text())
    assert config["head_learning_rate"] is None  # so that the file can be read again
    assert metrics["baseline"]["kind"] == "zero-shot"
    assert metrics["parameters"]["head"] == 0
    config = SPTConfig.from_pretrained(str(run.adapter_dir))
    assert config.task_type == ("CAUSAL_LM" if backbone == "causal_lm" else None)
    assert evaluate(run.adapter_dir, options["test_file"]) == metrics["test"]


def test_classifier_on_a_causal_backbone_uses_its_own_head(
    options: dict[str, Any], causal_lm: str, tmp_path: Path
) -> None:
    run = train(**{**options, "model": causal_lm}, output_dir=tmp_path / "run", prompt_layers=[1])
    assert yaml.safe_load((run.output_dir / "config.yaml").read_text())["head_pooling"] == "own"
    assert run.metrics["baseline"]["parameters"] == 32 * 2
    assert evaluate(run.adapter_dir, options["test_file"]) == run.metrics["test"]


def test_modules_that_the_checkpoint_lacks_are_trained_and_saved(options: dict[str, Any], tmp_path: Path) -> None:
    # A BERT saved with a language-model head has no pooler, which its own classifier reads.
    run = train(**options, output_dir=tmp_path / "run", prompt_layers=[1], head_pooling="own")
    pooler = 32 * 32 + 32
    assert run.metrics["parameters"]["head"] == pooler + 32 * 2 + 2
    assert run.metrics["baseline"]["parameters"] == pooler + 32 * 2 + 2
    assert evaluate(run.adapter_dir, options["test_file"]) == run.metrics["test"]


def test_a_head_for_other_classes_is_replaced_and_the_pooler_beside_it_kept(
    options: dict[str, Any], masked_lm: str, tmp_path: Path
) -> None:
    model = shutil.copytree(masked_lm, tmp_path / "model")
    BertForSequenceClassification.from_pretrained(masked_lm, num_labels=5).save_pretrained(model)
    options |= {"model": str(model), "prompt_layers": [1], "head_pooling": "own"}
    run = train(**options, output_dir=tmp_path / "run")
    assert run.metrics["parameters"]["head"] == 32 * 2 + 2
    assert evaluate(run.adapter_dir, options["test_file"]) == run.metrics["test"]


@pytest.mark.parametrize("pooling", [None, "own"])
def test_a_mean_pooled_classifier_is_a_backbone_with_a_new_head(
    pooling: str | None, options: dict[str, Any], causal_lm: str, tmp_path: Path
) -> None:
    model = shutil.copytree(causal_lm, tmp_path / "model")
    saved = MeanPooledClassifier.from_backbone(causal_lm, num_labels=5)
    saved.backbone.layers[0].mlp.up_proj.weight.data.mul_(2)  # as after a training
    saved.save_pretrained(model)
    options |= {"model": str(model), "prompt_layers": [1], "head_pooling": pooling}
    run = train(**options, output_dir=tmp_path / "run")
    assert run.metrics["parameters"]["head"] == 32 * 2 + 2
    assert evaluate(run.adapter_dir, options["test_file"]) == run.metrics["test"]
    again = MeanPooledClassifier.from_backbone(str(model), num_labels=2)
    assert torch.equal(again.backbone.layers[0].mlp.up_proj.weight, saved.backbone.layers[0].mlp.up_proj.weight)
    assert again.name_or_path == str(model)


def test_baseline_leaves_no_trace(options: dict[str, Any], tmp_path: Path) -> None:
    with_baseline = train(**options, output_dir=tmp_path / "with", prompt_layers=[1])
    without = train(**options, output_dir=tmp_path / "without", prompt_layers=[1], linear_probe=False)
    assert with_baseline.metrics["test"] == without.metrics["test"]
    rows = [read_lines(run.output_dir / "predictions.jsonl") for run in (with_baseline, without)]
    assert rows[0] == rows[1]


# -- interrupted, resumed, refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "step"), [("Searching", 3), ("Training prompts", 7), ("Training a linear probe", 2)])
def test_interrupted_run_resumes_to_the_same_result(
    stage: str, step: int, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = fit(**options, output_dir=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(**options, output_dir=tmp_path / "broken", monitor=Interrupter(stage, step))
    assert not (tmp_path / "broken" / "metrics.json").exists()
    resumed = fit(output_dir=tmp_path / "broken", resume=True)
    assert resumed.prompt_layers == whole.prompt_layers
    assert resumed.metrics["search"]["scores"] == pytest.approx(whole.metrics["search"]["scores"])
    names = [run.output_dir / "predictions.jsonl" for run in (whole, resumed)]
    assert names[0].read_text() == names[1].read_text()
    assert {path.name for path in resumed.output_dir.iterdir()} == RUN_FILES


def test_resumed_training_goes_on_from_its_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(**options, output_dir=tmp_path, monitor=Interrupter("Training prompts", 7))
    for state_file in (tmp_path / "checkpoints" / "train").glob("checkpoint-*/trainer_state.json"):  # last and best
        state = json.loads(state_file.read_text())
        state_file.write_text(json.dumps({**state, "best_metric": 2.0}))  # no training reaches it
    assert fit(output_dir=tmp_path, resume=True).metrics["training"]["best_validation_score"] == 2.0


def test_finished_run_has_nothing_to_resume(finished: Any) -> None:
    before = (finished.output_dir / "metrics.json").stat().st_mtime_ns
    again = fit(output_dir=finished.output_dir, resume=True)
    assert again.metrics == finished.metrics
    assert (finished.output_dir / "metrics.json").stat().st_mtime_ns == before


def test_folder_with_another_run_is_refused_unless_overwritten(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(**options, output_dir=folder, prompt_layers=[0], linear_probe=False)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds a run already .*--resume.*--overwrite"):
        train(**options, output_dir=folder, prompt_layers=[1], linear_probe=False)
    run = train(**options, output_dir=folder, prompt_layers=[1], linear_probe=False, overwrite=True)
    assert run.prompt_layers == [1]
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_run_that_cannot_be_done_leaves_the_one_that_it_would_replace(
    options: dict[str, Any], masked_lm: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options |= {"prompt_layers": [0], "linear_probe": False, "output_dir": folder, "keep_checkpoints": True}
    train(**options)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weightless = shutil.copytree(masked_lm, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match="weightless"):
        train(**{**options, "model": weightless}, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_configuration_that_no_run_wrote_is_left_alone(options: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "config.yaml"
    own.write_text("max_steps: 3\n")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(InputError, match=r"config\.yaml: was not written by a run, .*name another output folder"):
            train(**options, prompt_layers=[0], output_dir=tmp_path, **how)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config.yaml": "max_steps: 3\n"}


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "report.html", "metrics.json"])
def test_what_no_run_wrote_is_not_replaced(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / name if "." in name else tmp_path / name / "mine.txt"
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    for how in ({}, {"overwrite": True}):
        with pytest.raises(InputError, match=rf"holds {name}, not written by a run .*name another output folder"):
            train(**options, prompt_layers=[0], output_dir=tmp_path, **how)
    assert own.read_text() == "mine"


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 9), (2, 6)])
def test_every_epoch_is_whole(accumulation: int, steps: int, options: dict[str, Any], tmp_path: Path) -> None:
    """Also where the last batch of an epoch, or the last step's number of batches, is smaller: 48 examples in 20s."""
    options |= {"max_steps": None, "epochs": 3, "batch_size": 20, "gradient_accumulation_steps": accumulation}
    train(**options, prompt_layers=[0], linear_probe=False, output_dir=tmp_path)
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["max_steps"] == steps
    assert max(entry["step"] for entry in history) == steps


def test_a_run_is_repeated_with_another_searcher(masked_lm: str, finished: Any, tmp_path: Path) -> None:
    """The file of a run holds its defaults, too; those that belong to its searcher do not go with another one."""
    config = finished.output_dir / "config.yaml"
    given = yaml.safe_load(config.read_text())["given"]
    assert {"model", "train_file", "max_steps"} <= set(given)
    assert not {"weight_decay", "head_pooling", "output_dir"} & set(given)
    run_files = ["--config", str(config), "--searcher", "middle", "--output", str(tmp_path / "again")]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *run_files])
    assert ended.value.code == 0
    again = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert (again["searcher"], again["model"]) == ("middle", masked_lm)
    assert set(again["given"]) - {"searcher"} <= set(given)


def test_a_run_does_not_replace_what_it_reads(options: dict[str, Any], tmp_path: Path) -> None:
    """Such as its own predictions, to train on them."""
    folder = tmp_path / "run"
    train(**options, output_dir=folder, prompt_layers=[0], linear_probe=False)
    labeled = folder / "predictions.jsonl"
    before = labeled.read_text()
    with pytest.raises(InputError, match=r"predictions\.jsonl: would be removed .*name another output folder"):
        train(**{**options, "train_file": labeled}, output_dir=folder, prompt_layers=[0], overwrite=True)
    assert labeled.read_text() == before


def test_resuming_with_other_options_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(**options, output_dir=tmp_path, monitor=Interrupter("Searching", 2))
    with pytest.raises(InputError, match=r"max_steps was 10 and is now 12"):
        fit(output_dir=tmp_path, resume=True, max_steps=12)
    with pytest.raises(InputError, match=r"max_steps was 10 and is now 18"):
        fit(output_dir=tmp_path, resume=True, epochs=3)
    with pytest.raises(InputError, match=r"sptune fit.*resume it with that command"):
        train(output_dir=tmp_path, resume=True, prompt_layers=[0])


def test_a_run_goes_on_with_data_that_moved_and_not_with_others(options: dict[str, Any], tmp_path: Path) -> None:
    for name in ("train_file", "validation_file", "test_file"):
        options[name] = shutil.copy(options[name], tmp_path / f"{name}.jsonl")
    folder = tmp_path / "run"
    options |= {"prompt_layers": [0], "linear_probe": False, "output_dir": folder}
    with pytest.raises(KeyboardInterrupt):
        train(**options, monitor=Interrupter("Training prompts", 7))
    changed, moved = tmp_path / "test_file.jsonl", tmp_path / "moved.jsonl"
    before = changed.read_text()
    changed.write_text(before.replace("good", "bad", 1))
    with pytest.raises(InputError, match=r"test_file\.jsonl: was changed after the run in .*--overwrite"):
        train(output_dir=folder, resume=True)
    changed.rename(tmp_path / "other.jsonl")
    with pytest.raises(InputError, match=r"test_file was .*test_file\.jsonl' and is now .*other\.jsonl'"):
        train(output_dir=folder, resume=True, test_file=tmp_path / "other.jsonl")
    changed.write_text(before)
    (tmp_path / "train_file.jsonl").rename(moved)
    run = train(output_dir=folder, resume=True, train_file=moved)
    assert run.metrics["training"]["steps"] == 10
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["train_file"] == str(moved)
    assert str(moved) in config["data_files"]


def test_nothing_to_resume_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run to resume"):
        fit(**options, output_dir=tmp_path, resume=True)


def test_an_exhaustive_search_without_end_is_refused_at_once(
    options: dict[str, Any], deep_lm: str, tmp_path: Path
) -> None:
    changes = {"model": deep_lm, "searcher": "exhaustive", "num_prompt_layers": 4, "candidate_layers": list(range(14))}
    with pytest.raises(InputError, match="would train 1001 networks for 4 of 14 layers"):
        fit(**{**options, **changes}, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data_are_reported_before_the_backbone_is_looked_at(options: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a film", "label": "good"}\n{"text": "", "label": "bad"}\n')
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("not json")
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        fit(**{**options, "train_file": str(bad), "model": str(broken)}, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model is missing"),
        ({"model": "./nowhere"}, "there is no such folder"),
        ({"model": "someone/surely-not-there-0"}, "could not be loaded from the model hub"),
        ({"gguf_file": "weights.gguf"}, "weights.gguf"),
        ({"train_file": None}, "no data to train on"),
        ({"prompt_layers": [1]}, "use train"),
        ({"max_length": 100}, "more than the 40 tokens"),
        ({"candidate_layers": [1, 9]}, "this backbone has 0 to 2"),
        ({"candidate_layers": [1, 1]}, "names a layer twice"),
        (
            {"candidate_layers": [0, 2], "searcher": "middle", "search_steps": None},
            "is layer 1, which is not among the candidate_layers",
        ),
        ({"num_prompt_layers": 2, "searcher": "all"}, "fixes the layers"),
        ({"revision": "main"}, "revision='main' is of a model on the hub, and model="),
        ({"head_learning_rate": 0.1, **LABEL_WORDS}, "head_learning_rate=0.1 is for classifiers"),
        ({"head_pooling": "own", **LABEL_WORDS}, "head_pooling='own' is for classifiers"),
        ({"num_prompt_layers": 7}, "the 3 layers there are"),
        ({"parameter_budget": 10}, "less than the 292 parameters of one layer's generator"),
        ({"projection": "phm", "phm_dim": 3, "bottleneck_dim": 6}, "phm_dim=3 does not divide"),
        ({"task_kind": "verbalizer"}, "needs a template"),
        ({"template": "{text} [MASK]", "label_words": {"good": "good", "wrong": "bad"}}, "classes are bad, good"),
        (
            {"template": "{text} [MASK]", "label_words": {"good": "good", "ba\u200bd": "bad"}},
            "'ba\\u200bd' (with U+200B ZERO WIDTH SPACE) only looks like 'bad'",
        ),
        ({"layers_path": "backbone.nothing"}, "does not lead to a list of blocks"),
    ],
)
def test_wrong_options_are_refused(
    change: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        fit(**{**options, **change}, output_dir=tmp_path / "run", linear_probe=False)
    assert not (tmp_path / "run").exists()


def test_the_classes_of_a_folder_are_those_that_its_files_name(options: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "sections"
    folder.mkdir()
    rows = [f"the film {index},{('1.1', '1.10', '01', 'NA')[index % 4]}" for index in range(80)]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]))
    for name in ("train_file", "validation_file", "test_file"):
        del options[name]
    options |= {"searcher": "all", "max_steps": 1, "search_steps": None, "linear_probe": False}
    classes = []
    for number, data in enumerate(({"dataset": str(folder)}, {"train_file": str(folder / "train.csv")})):
        fit(**options, **data, output_dir=tmp_path / str(number))
        classes.append(inspect(tmp_path / str(number) / "adapter")["task"]["labels"])
    assert classes[0] == classes[1] == ["01", "1.1", "1.10", "NA"]


def test_a_gguf_file_in_another_folder_than_the_model_is_refused(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.gguf").touch()
    here, there = (str(tmp_path / name / "weights.gguf") for name in ("here", "there"))
    assert _name_inside(tmp_path / "here", here) == _name_inside(tmp_path / "here", "weights.gguf") == "weights.gguf"
    with pytest.raises(InputError, match=r"there/weights\.gguf' is not in .*here; GGUF files there: weights\.gguf"):
        _name_inside(tmp_path / "here", there)


def test_a_run_of_which_nothing_is_said_is_told_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.*train_file.*task"):
        fit(output_dir=tmp_path / "run")


def test_verbalizer_needs_a_language_model_head(
    options: dict[str, Any], finished: Any, masked_lm: str, tmp_path: Path
) -> None:
    AutoModel.from_pretrained(masked_lm).save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(masked_lm).save_pretrained(tmp_path / "headless")
    options |= {"model": str(tmp_path / "headless"), "template": "{text} [MASK]",
                "label_words": {"good": "good", "bad": "bad"}}  # fmt: skip
    with pytest.raises(InputError, match="no language-model head"):
        fit(**options, output_dir=tmp_path / "run")


def test_a_task_with_label_words_says_when_a_classifier_is_trained_instead(
    options: dict[str, Any], masked_lm: str, tmp_path: Path
) -> None:
    headless = shutil.copytree(masked_lm, tmp_path / "headless")
    AutoModel.from_pretrained(masked_lm).save_pretrained(headless)
    options |= {
        "model": str(headless),
        "task": "sst2",
        "labels": ["bad", "good"],
        "text_columns": ["text"],
        "prompt_layers": [1],
    }
    told = {}
    for name, change in {"plain": {}, "asked": {"task_kind": "classifier"}}.items():
        notes = Notes()
        train(**options, **change, output_dir=tmp_path / name, monitor=notes)
        told[name] = any("no language-model head" in text for text in notes.texts)
    assert told == {"plain": True, "asked": False}


@pytest.mark.parametrize(
    ("config", "dropped", "named"),
    [
        ({"num_hidden_layers": 4}, None, "encoder.layer.3.attention"),
        ({"vocab_size": 100}, None, "embeddings.word_embeddings.weight"),
        ({}, "bert.encoder.layer.1.output.dense.bias", "encoder.layer.1.output.dense.bias"),
    ],
    ids=["layers", "vocabulary", "bias"],
)
@pytest.mark.parametrize(
    "task",
    [
        {"head_pooling": "mean"},
        {"head_pooling": "own"},
        {"template": "{text} [MASK]", "label_words": {"good": "good", "bad": "bad"}},
    ],
    ids=["mean", "own", "verbalizer"],
)
def test_a_backbone_that_would_be_partly_random_is_refused(
    config: dict[str, Any],
    dropped: str | None,
    named: str,
    task: dict[str, Any],
    options: dict[str, Any],
    masked_lm: str,
    tmp_path: Path,
) -> None:
    model = shutil.copytree(masked_lm, tmp_path / "model")
    told = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**told, **config}))
    weights = load_file(model / "model.safetensors")
    if dropped is not None:
        del weights[dropped]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="would stay random") as refusal:
        fit(**{**options, **task, "model": str(model)}, output_dir=tmp_path / "run")
    assert str(model) in str(refusal.value)
    assert named in str(refusal.value)
    assert not (tmp_path / "run").exists()  # so that the same call with another model works


def test_diverged_training_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SptuneError, match="learning_rate"):
        train(
            **options, output_dir=tmp_path, prompt_layers=[0], linear_probe=False, learning_rate=1e30,
            head_learning_rate=1e30,
        )  # fmt: skip


def test_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    for use in (lambda: inspect(tmp_path), lambda: AdapterPool(tmp_path), lambda: evaluate(tmp_path, "test.jsonl")):
        with pytest.raises(InputError, match="holds no adapter"):
            use()
