"""`sptune compare` on tiny backbones: every method trains what it should, and a study can be cut off and shared."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import yaml
from transformers import BertForMaskedLM, LlamaForSequenceClassification

from sptune.cli.commands import main
from sptune.compare import METHODS, Study, compare
from sptune.compare import comparison as comparing
from sptune.compare.methods import ADAPTERS, LINEAR_PROBE, WEIGHTS, ZERO_SHOT
from sptune.compare.networks import AdaLoraSteps, attach, trained_parameters
from sptune.compare.run_log import RunLog
from sptune.compare.run_spec import RunSpec
from sptune.compare.study_run import execute
from sptune.compare.workers import Watcher
from sptune.errors import InputError, SptuneError
from sptune.runs import output_folder as outputs
from sptune.runs import stages
from sptune.runs.job import load
from sptune.runs.plan import prepare
from sptune.runs.progress import Monitor
from sptune.runs.stage_trainers import make_trainer, training_arguments
from tiny_runs import write_labels_or_numbers

SMALL = {"bottleneck_dim": 4}
ATTACHED = [name for name, method in METHODS.items() if method.kind not in (ADAPTERS, LINEAR_PROBE, ZERO_SHOT)]


@pytest.fixture
def parts(data: dict[str, str], masked_lm: str) -> dict[str, Any]:
    """A study of prompts, LoRA and the head on one small task."""
    return {
        "methods": {"spt": {**SMALL, "searcher": "fair", "search_steps": 2, "learning_rates": 1e-2},
                    "lora": {"learning_rates": [1e-3, 1e-2]}, "linear-probe": {"learning_rates": 1e-2}},
        "tasks": {"words": data},
        "options": {"model": masked_lm, "max_steps": 4, "batch_size": 8},
        "seeds": [0, 1],
    }  # fmt: skip


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def run_of(method: str, options: dict[str, Any], **settings: Any) -> Any:
    """The only reported run of a study of one method."""
    own = {"learning_rates": METHODS[method].learning_rates[0], **settings}
    study = Study.from_mapping({"methods": {method: own}, "tasks": {"t": options}, "seeds": [0]}, "study")
    (spec,) = study.final_runs({})
    return spec


@pytest.mark.parametrize("name", ["study.yaml", "summary.json", "summary.md", "layers.png", "runs.jsonl"])
def test_a_study_replaces_no_file_of_others(name: str, parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(InputError, match=f"{name}.*name another *\n?folder"):
        compare(parts, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {name: "mine\n"}


@pytest.mark.parametrize(
    ("option", "output"), [("dataset", "read"), ("dataset", "read/deep/out"), ("model", "read"), ("dataset", "link")]
)
def test_a_study_is_not_written_into_what_its_runs_read(
    option: str, output: str, parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("read").mkdir()
    Path("link").symlink_to("read/out")
    parts["tasks"]["words"] = {**(parts["tasks"]["words"] if option == "model" else {}), option: "read"}
    with pytest.raises(
        InputError, match=rf"words: {option}='{tmp_path}/read' holds the output folder {output}, .*outs"
    ):
        compare(parts, output)
    assert list(Path("read").iterdir()) == []


def test_a_study_writes_a_row_a_run_a_summary_and_pictures(parts: dict[str, Any], tmp_path: Path) -> None:
    comparison = compare(parts, tmp_path)
    rows = read_rows(tmp_path)
    assert len({row["run"] for row in rows}) == len(rows) == 2 + 3 * 2
    assert {row["state"] for row in rows} == {"done"}
    tuning = [row for row in rows if row["tuning"]]
    assert {row["method"] for row in tuning} == {"lora"}
    assert not any("test" in row for row in tuning)
    best = max(tuning, key=lambda row: (row["score"], -row["learning_rate"]))["learning_rate"]
    assert {row["learning_rate"] for row in rows if row["method"] == "lora" and not row["tuning"]} == {best}
    for row in rows:
        assert row["seconds"]["total"] == pytest.approx(row["seconds"]["search"] + row["seconds"]["train"], abs=0.02)
        assert (row["seconds"]["search"] > 0) is (row["method"] == "spt")
        assert (row["prompt_layers"] is not None) is (row["method"] == "spt")
        assert row["adapter_bytes"] > 0
        assert row["steps"] == parts["options"]["max_steps"]
        assert row["device"]
        assert row["processor"].endswith(f"threads: {torch.get_num_threads()}")
        assert ("with AMX" in row["processor"]) is torch.cpu._is_amx_tile_supported()  # not where it is read from
        assert row["bf16"] is False
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [line["method"] for line in summary] == ["spt", "lora", "linear-probe"]
    assert [line["runs"] for line in summary] == [2, 2, 2]
    own = [row["test"]["score"] for row in rows if row["method"] == "spt"]
    assert summary[0]["scores"]["words"] == pytest.approx(sum(own) / 2)
    assert comparison.summary[2].parameters == 0
    tables = [line.strip("|").split("|") for line in (tmp_path / "summary.md").read_text().splitlines() if "|" in line]
    scores, costs = ([[cell.strip() for cell in line] for line in part] for part in (tables[:5], tables[5:]))
    assert scores[0] == ["method", "words", "sd", "minus spt (95 % interval)", "runs"]
    assert [line[0] for line in scores[2:]] == [line[0] for line in costs[2:]] == ["spt", "lora", "linear-probe"]
    assert [line[1] for line in scores[2:]] == [f"{line['scores']['words']:.4f}" for line in summary]
    assert len({len(line) for line in costs}) == 1
    kept = {path.name for path in tmp_path.iterdir()}
    assert {"study.yaml", "report.html", "accuracy_by_parameters.png", "accuracy_by_time.png", "layers.png"} <= kept
    assert not (tmp_path / "runs").exists()
    assert Study.read(tmp_path / "study.yaml") == comparison.study
    compare({**parts, "methods": {"linear-probe": {"learning_rates": 1e-2}}}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept - {"layers.png"}, "this study chooses no layers"


def test_what_is_done_is_not_repeated_and_more_seeds_only_add(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(parts, tmp_path)
    before = (tmp_path / "runs.jsonl").read_text()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    compare(parts, f"~/{tmp_path.name}")
    assert (tmp_path / "runs.jsonl").read_text() == before
    compare({**parts, "seeds": [0, 1, 2]}, tmp_path)
    after = (tmp_path / "runs.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 3


def test_the_same_run_gives_the_same_scores(parts: dict[str, Any], tmp_path: Path) -> None:
    scores = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        compare({**parts, "seeds": [0]}, folder)
        scores.append({row["run"]: row["score"] for row in read_rows(folder)})
    assert scores[0] == scores[1]


def test_a_failed_run_is_recorded_and_the_rest_goes_on(parts: dict[str, Any], tmp_path: Path) -> None:
    parts["methods"] = {"linear-probe": {"learning_rates": 1e-2}, "lora": {"learning_rates": 1e-3, "r": -1}}
    comparison = compare(parts, tmp_path)
    states = {(row["method"], row["seed"]): row for row in read_rows(tmp_path)}
    assert [states["linear-probe", seed]["state"] for seed in (0, 1)] == ["done", "done"]
    failure = states["lora", 0]
    assert failure["state"] == "failed"
    assert "PEFT refuses LORA" in failure["error"]
    assert "-1" in failure["error"]
    assert [(line.runs, line.failed) for line in comparison.summary] == [(2, 0), (0, 2)]
    lines = (tmp_path / "runs.jsonl").read_text()
    compare(parts, tmp_path)
    assert (tmp_path / "runs.jsonl").read_text() == lines
    compare(parts, tmp_path, retry_failed=True, only=["linear-probe"])
    assert (tmp_path / "runs.jsonl").read_text() == lines, "those of other methods stay"
    log = RunLog(tmp_path)
    cured = {**failure, "state": "failed", "error": "the disk was full"}
    outputs.write_json_lines(log.path, [row if row["run"] != cured["run"] else cured for row in log.read()])
    compare(parts, tmp_path, retry_failed=True)
    errors = {row["run"]: row["error"] for row in log.read() if row["state"] == "failed"}
    assert len(log.read()) == 4
    assert errors[cured["run"]] == failure["error"], "it was done again"


def test_a_killed_study_goes_on_where_it_was(parts: dict[str, Any], tmp_path: Path) -> None:
    """The line that was being written, and what the run under way has left, are not in the way."""
    whole = compare(parts, tmp_path / "whole")
    folder = tmp_path / "killed"
    compare({**parts, "seeds": [0]}, folder)
    with (folder / "runs.jsonl").open("a") as file:
        file.write('{"run": "')
    left = folder / "runs" / whole.rows[-1]["run"]
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("command: compare\nmax_steps: 99\n")
    resumed = compare(parts, folder)
    assert {row["run"]: row["score"] for row in resumed.rows} == {row["run"]: row["score"] for row in whole.rows}


def test_a_removed_folder_is_left_removed_by_the_run_that_was_under_way(parts: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "study"

    class Removes(Watcher):
        def began(self, spec: RunSpec) -> None:
            shutil.rmtree(folder)

    with pytest.raises(SptuneError, match="was removed or moved"):
        compare(parts, folder, watcher=Removes())
    assert not folder.exists()


def test_processes_share_a_study(parts: dict[str, Any], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({**parts, "seeds": [0, 1, 2]}))
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "sptune", "compare", "--study", str(study), "--output", str(folder), "--json"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    rows = read_rows(folder)
    assert len({row["run"] for row in rows}) == len(rows) == 2 + 3 * 3
    assert outputs[0][0] == outputs[1][0]


@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in ATTACHED), ("spt", True), ("lora", True), ("full", True)]
)
def test_every_method_trains_its_own_parameters_and_the_head(
    name: str, checkpointing: bool, data: dict[str, str], masked_lm: str, tmp_path: Path
) -> None:
    options = {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8, "gradient_checkpointing": checkpointing}
    settings = {"searcher": "fair", "search_steps": 2} if name == "spt" else {}
    spec = run_of(name, options, **settings)
    plan = prepare("compare", spec.run_options(tmp_path), Monitor())
    job = load(plan)
    backbone = {id(parameter) for parameter in job.backbone.backbone.parameters()}
    network = attach(spec.method, job)
    before = {key: value.clone() for key, value in network.module.named_parameters()}
    frozen = {key for key, value in network.module.named_parameters() if not value.requires_grad}
    assert trained_parameters(network.module, job)["added"] > 0
    stages.train_network(job, network.module, "", network.callbacks)
    changed = {key for key, value in network.module.named_parameters() if not torch.equal(value, before[key])}
    assert changed
    assert not changed & frozen
    own_backbone = {key for key, value in network.module.named_parameters() if id(value) in backbone}
    if METHODS[name].kind == WEIGHTS:
        assert changed & own_backbone
    else:
        assert not changed & own_backbone
    assert any("classifier" in key for key in changed)
    assert any("classifier" not in key for key in changed)


def changed_layers(network: torch.nn.Module) -> set[int]:
    """The blocks in which something is trained."""
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    return {int(found[1]) for name in names if (found := re.search(r"\.(?:layer|layers|h)\.(\d+)\.", name))}


@pytest.mark.parametrize("backbone", ["masked_lm", "causal_lm"])
@pytest.mark.parametrize("task", ["mean", "own head", "label words"])
@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, {0, 1, 2}),  # as spt: all layers, for there are fewer than four
        ({"from_layer": 2}, {2}),
        ({"from_layer": 1}, {1, 2}),
        ({"from_layer": 1, "target_modules": "dense"}, {1, 2}),
    ],
    ids=str,
)
def test_lora_in_upper_layers_changes_no_others(
    settings: dict[str, Any], layers: set[int], task: str, backbone: str, data: dict[str, str], tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    model = request.getfixturevalue(backbone)
    if "target_modules" in settings:
        modules = ["dense"] if backbone == "masked_lm" else ["o_proj", "up_proj"]
        settings = {**settings, "target_modules": modules}
    options = {
        "mean": {"task_kind": "classifier", "head_pooling": "mean"},
        "own head": {"task_kind": "classifier", "head_pooling": "own"},
        "label words": {
            "template": "{text} It was [MASK] ." if backbone == "masked_lm" else "{text} It was",
            "label_words": {"good": "good", "bad": "bad"},
        },
    }[task]
    spec = run_of("lora-upper", {**data, **options, "model": model, "max_steps": 2, "batch_size": 8}, **settings)
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    network = attach(spec.method, job)
    assert changed_layers(network.module) == layers
    assert network.from_layer == min(layers)
    plan = make_trainer(job, network.module, training_arguments(job, "train", 2)).plan_activation_cache()
    assert (plan.reason is None) is (min(layers) > 0)
    assert plan.layer == min(layers)


def test_the_lowest_layer_of_lora_is_that_of_spt(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    options = {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8}
    spt, lora = (execute(run_of(name, options), tmp_path / name) for name in ("spt", "lora-upper"))
    assert lora["state"] == "done", lora
    assert lora["from_layer"] == spt["prompt_layers"][0]
    assert spt["from_layer"] is None
    cached, plain = (
        execute(run_of("lora-upper", {**options, "activation_cache": on}), tmp_path / "run") for on in (True, False)
    )
    assert cached["validation"] == plain["validation"]


def test_a_layer_that_is_not_there_is_refused_before_anything_is_trained(parts: dict[str, Any], tmp_path: Path) -> None:
    parts["methods"] = {"lora-upper": {"learning_rates": 1e-3, "from_layer": 3}}
    with pytest.raises(InputError, match=r"lora-upper on words: from_layer=3 is not there; .* layers 0 to 2"):
        compare(parts, tmp_path)
    assert not (tmp_path / "runs.jsonl").exists() or not read_rows(tmp_path)


def test_layers_that_have_none_of_the_modules_are_told(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    """PEFT leaves layers out silently if the pattern of its names does not fit."""
    options = {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8}
    row = execute(run_of("lora-upper", options, layers_pattern=["layer"], target_modules=["nothing"]), tmp_path / "run")
    assert row["state"] == "failed"
    some = ["layer.1.attention.self.query"]
    row = execute(run_of("lora-upper", options, from_layer=1, target_modules=some), tmp_path / "run")
    assert "asks for changes in layers [1, 2], but PEFT made them in [1]" in row["error"]


def test_layer_norms_of_the_backbone_are_tuned_where_peft_knows_none(
    data: dict[str, str], masked_lm: str, causal_lm: str, tmp_path: Path
) -> None:
    """Two in each of three blocks, and one below (BERT) or above them (Llama)."""
    for model in (masked_lm, causal_lm):
        spec = run_of("ln-tuning", {**data, "model": model, "max_steps": 2, "task_kind": "classifier"})
        job = load(prepare("compare", spec.run_options(tmp_path / Path(model).name), Monitor()))
        network = attach(spec.method, job).module
        weights = [name for name, one in network.named_parameters() if one.requires_grad and name.endswith("weight")]
        assert len([name for name in weights if "classifier" not in name and "score" not in name]) == 7


def test_vera_saves_its_scales_alone(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    row = execute(run_of("vera", {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8}), tmp_path / "run")
    assert row["state"] == "done", row
    assert row["adapter_bytes"] < 8 * row["parameters"]["trainable"] + 20_000


@pytest.mark.parametrize("name", ["spt", "lora", "full", "bitfit"])
def test_a_fresh_pooler_learns_at_the_rate_of_the_head(
    name: str, data: dict[str, str], masked_lm: str, tmp_path: Path
) -> None:
    """Whatever the method: a checkpoint of a language model has no pooler, so that it belongs to the head."""
    options = {**data, "model": masked_lm, "max_steps": 1, "batch_size": 8, "head_pooling": "own"}
    spec = run_of(name, {**options, "head_learning_rate": 1e-2}, learning_rates=1e-4)
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    trainer = stages.train_network(job, attach(spec.method, job).module, "")
    names = {id(parameter): key for key, parameter in trainer.model.named_parameters()}
    rates = {
        names[id(parameter)]: group["initial_lr"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    head = {key for key in rates if {"pooler", "classifier"} & set(key.split("."))}
    assert len(head) == 4
    assert {rates[key] for key in head} == {1e-2}
    assert {rate for key, rate in rates.items() if key not in head} == {1e-4}


def test_prefixes_are_seen_by_a_mean_pooled_classifier(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    """PEFT's prefix tuning hands keys and values through `past_key_values`; the head's mean is over the text alone."""
    spec = run_of("prefix-tuning", {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8})
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    network: Any = attach(spec.method, job).module.eval()
    batch = job.plan.encoder.collator([job.encoded["test"][index] for index in range(4)])
    batch.pop("labels")
    logits = network(**batch).logits
    assert logits.shape == (4, 2)
    assert not torch.allclose(logits, network.base_model(**batch).logits, atol=1e-4)


def test_prefixes_that_would_not_arrive_are_refused(
    data: dict[str, str], masked_lm: str, causal_lm: str, tmp_path: Path
) -> None:
    spec = run_of("prefix-tuning", {**data, "model": masked_lm, "max_steps": 2, "gradient_checkpointing": True})
    row = execute(spec, tmp_path / "run")
    assert row["state"] == "failed"
    assert "gradient_checkpointing" in row["error"]
    own = {**data, "model": causal_lm, "max_steps": 2, "task_kind": "classifier", "head_pooling": "own"}
    row = execute(run_of("prefix-tuning", own), tmp_path / "run")
    if row["state"] == "failed":  # PEFT asks for the name that transformers has given up
        assert "past_key_values" not in inspect.signature(LlamaForSequenceClassification.forward).parameters
        assert "head_pooling: mean" in row["error"]
    mean = run_of("prefix-tuning", {**own, "head_pooling": "mean"})
    assert execute(mean, tmp_path / "run")["state"] == "done"
    words = {"template": "{text} It was [MASK] .", "label_words": {"good": "good", "bad": "bad"}}
    row = execute(run_of("prefix-tuning", {**data, **words, "model": masked_lm, "max_steps": 2}), tmp_path / "run")
    parameters = inspect.signature(BertForMaskedLM.forward).parameters
    takes = bool({"cache", "past_key_values", "kwargs"} & set(parameters))
    assert (row["state"] == "done") is takes
    assert takes or "BertForMaskedLM takes no keys and values" in row["error"]


def test_adalora_has_the_gradient_of_its_own_regulariser() -> None:
    """PEFT adds it to a model's own loss, which a trainer that takes class scores never sees."""
    torch.manual_seed(0)

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> Any:
            return SimpleNamespace(loss=0.0 * self.second(self.first(x)).sum())

    config = peft.AdaLoraConfig(
        target_modules=["first", "second"], init_r=3, target_r=2, total_step=10, tinit=1, tfinal=2
    )
    model: Any = peft.get_peft_model(WithLoss(), config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    factors = {name: one for name, one in model.named_parameters() if "lora_A" in name or "lora_B" in name}
    AdaLoraSteps().on_pre_optimizer_step(None, None, None, model=model)  # type: ignore[arg-type]
    ours = {name: one.grad.clone() for name, one in factors.items()}
    model.zero_grad()
    model.base_model(torch.ones(1, 6)).loss.backward()
    assert len(factors) == 4
    for name, one in factors.items():
        torch.testing.assert_close(ours[name], one.grad)


def test_verbalizers_are_compared_with_zero_shot_and_need_no_head(
    data: dict[str, str], causal_lm: str, tmp_path: Path
) -> None:
    words = {"template": "{text} It was [MASK] .", "label_words": {"good": "good", "bad": "bad"}}
    tasks = {"words": {**data, **words, "model": causal_lm, "max_steps": 2, "batch_size": 8}}
    methods = {
        name: {"learning_rates": 1e-3}
        for name in ("lora", "prompt-tuning", "prefix-tuning", "zero-shot", "linear-probe")
    }
    methods["static-prompts"] = {"learning_rates": 1e-2}
    comparison = compare({"methods": methods, "tasks": tasks, "seeds": [0], "against": "lora"}, tmp_path)
    states = {row["method"]: row["state"] for row in comparison.rows}
    assert states.pop("linear-probe") == "skipped"
    assert set(states.values()) == {"done"}, [row.get("error") for row in comparison.rows]
    zero = next(row for row in comparison.rows if row["method"] == "zero-shot")
    assert zero["parameters"] == {"trainable": 0, "added": 0}


def test_labels_and_numbers_are_compared_by_micro_f1_and_r2(masked_lm: str, tmp_path: Path) -> None:
    tasks = {
        kind: {"train_file": write_labels_or_numbers(tmp_path / f"{kind}.csv", kind, 60), "task_kind": kind}
        for kind in ("multi_label", "regression")
    }
    methods = {name: {"learning_rates": 1e-2} for name in ("spt", "lora", "prefix-tuning", "linear-probe", "zero-shot")}
    options = {"model": masked_lm, "max_steps": 4, "batch_size": 8}
    study = {"methods": methods, "tasks": tasks, "seeds": [0], "options": options}
    comparison = compare(study, tmp_path / "compared")
    skipped = [row for row in comparison.rows if row["method"] == "zero-shot"]
    assert [row["state"] for row in skipped] == ["skipped", "skipped"]
    done = [row for row in comparison.rows if row["method"] != "zero-shot"]
    assert {row["state"] for row in done} == {"done"}, [row.get("error") for row in done]
    for row in done:
        assert row["test"]["score"] == row["test"]["micro_f1" if row["task"] == "multi_label" else "r2"]
    assert (tmp_path / "compared" / "report.html").exists()


def test_a_missing_library_is_told_before_anything_is_trained(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    both = {**parts["methods"], "houlsby": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = r"houlsby: needs the library adapters.*--methods spt,lora,linear-probe\).*pip install"
    with pytest.raises(InputError, match=told):
        compare({**parts, "methods": both}, tmp_path / "out")
    with pytest.raises(InputError, match="only: do these in an environment"):
        compare({**parts, "methods": both}, tmp_path / "out", only=["houlsby"])
    with pytest.raises(InputError, match=r"needs ray.*pip install"):
        compare(parts, tmp_path / "other", ray="auto")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "other").exists()


def test_some_methods_of_a_study_can_be_done_elsewhere(parts: dict[str, Any], tmp_path: Path) -> None:
    """Such as those of a library that does not go with this environment; the summary is of the whole study."""
    parts["methods"] = {"spt": parts["methods"]["spt"], "linear-probe": {"learning_rates": 1e-2}, "houlsby": None}
    part = compare(parts, tmp_path, only=["linear-probe"])
    assert [line.runs for line in part.summary] == [0, 2, 0]
    assert [line.runs for line in compare(parts, tmp_path, only=["spt"]).summary] == [2, 2, 0]
    with pytest.raises(
        InputError, match="'lora' is not a method of the study, whose methods are spt, linear-probe, houlsby"
    ):
        compare(parts, tmp_path, only=["lora"])


def test_texts_that_leave_no_room_for_prompts_are_told(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"text": "the film " * 18, "label": one}) + "\n" for one in ["good", "bad"] * 8))
    spec = run_of("prompt-tuning", {**data, "train_file": str(long), "model": masked_lm, "max_steps": 2})
    row = execute(spec, tmp_path / "run")
    assert row["state"] == "failed"
    assert "10 positions before the text" in row["error"]
    assert "max_length of at most 30" in row["error"]


def test_a_backbone_that_is_not_supported_is_told_before_anything_is_trained(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "t5"}')
    parts["options"]["model"] = str(tmp_path / "model")
    with pytest.raises(InputError, match=r"Task words: .*t5"):
        compare(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_tasks_that_are_the_same_runs_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    parts["tasks"]["again"] = {**parts["tasks"]["words"], "bf16": True}
    with pytest.raises(InputError, match="Tasks words and again are the same runs"):
        compare(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_data_are_told_before_anything_is_trained(parts: dict[str, Any], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "", "label": "good"}\n')
    parts["tasks"]["second"] = {"train_file": str(bad)}
    with pytest.raises(InputError, match=r"Task second: .*bad\.jsonl:1"):
        compare(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_that_do_not_fit_the_backbone_are_told_before_anything_is_trained(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    for settings, message in (
        ({"num_prompt_layers": 9}, r"num_prompt_layers=9 is more than the 3 layers"),
        ({"prompt_layers": [7]}, r"prompt_layers=\[7\] names a layer that is not there"),
        ({"projection": "phm", "phm_dim": 5}, "phm_dim"),
        ({"prompt_layers": [1, 1]}, "names a layer twice"),
        ({"selection": "gates"}, "selection='gates' does not fit searcher='auto'"),
    ):
        parts["methods"] = {"linear-probe": None, "mine": {"method": "spt", **settings}}
        with pytest.raises(InputError, match=f"mine on words: .*{message}"):
            compare(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    parts["methods"]["mine"] = {"method": "spt", "prompt_layers": [7]}
    assert compare({**parts, "seeds": [0]}, tmp_path / "out", only=["linear-probe"]).summary[0].runs == 1


def test_what_is_odd_about_the_data_and_what_is_left_out_is_told(
    data: dict[str, str], masked_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Path(data["train_file"]).read_text().splitlines()
    odd = json.dumps({**json.loads(lines[0]), "label": "godo"})
    file = tmp_path / "words.jsonl"
    file.write_text("\n".join([*lines, odd]) + "\n")
    study = tmp_path / "mine.yaml"
    parts = {"methods": {name: {"learning_rates": 1e-3} for name in ("linear-probe", "zero-shot")},
             "tasks": {"words": {"train_file": str(file)}}, "seeds": [0],
             "options": {"model": masked_lm, "max_steps": 1}}  # fmt: skip
    study.write_text(yaml.safe_dump(parts))

    def told(*more: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["compare", "--study", str(study), "--output", str(tmp_path / "out"), *more])
        captured = capsys.readouterr()
        assert not left.value.code, captured.err
        return " ".join((captured.err + captured.out).split())

    first = told("--methods", "linear-probe, zero-shot")
    assert "words: The class 'godo' has 1" in first
    row = next(row for row in read_rows(tmp_path / "out") if row["method"] == "linear-probe")
    assert f"Test examples: words {row['test']['examples']}." in first
    assert "have ended." not in first
    again = told()
    assert "All runs have ended." in again
    assert "zero-shot needs label words" in again
    assert "Other runs in the folder" not in again
    assert "words: The class" not in again
    assert "All runs of linear-probe have ended." in told("--methods", "linear-probe")
    study.write_text(yaml.safe_dump({**parts, "seeds": [1]}))
    assert re.search(r"Other runs in the folder.*: 2;", told())


def test_the_command_line_compares_on_the_users_own_files(
    data: dict[str, str], masked_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part for name, value in data.items() for part in ("--" + name.replace("_", "-"), value)]
    command = ["compare", "--model", masked_lm, *given, "--methods", "lora,head", "--seeds", "0", "--max-steps", "2"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--dry-run"])
    assert not left.value.code
    assert "Runs: 6 to choose learning rates, 2 to report" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--dry-run", "--json"])
    plans = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(plan["method"], plan["options"]["max_steps"]) for plan in plans} == {("lora", 2), ("linear-probe", 2)}
    assert not any("prompt_layers" in plan["options"] for plan in plans)
    with pytest.raises(SystemExit) as left:
        main([*command, "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert not left.value.code, captured.err
    assert "minus lora (95 % interval)" in captured.out
    assert "linear-probe on train, seed 0" in captured.err
    assert "Note: The method 'head' is now 'linear-probe'; the old name will be removed." in captured.err
    assert "8 of 8 runs ended" in captured.err
    costs = captured.out[captured.out.index("rates") :].splitlines()
    assert {
        line.split()[0]: float(line.split()[-1]) in METHODS[line.split()[0]].learning_rates for line in costs[1:3]
    } == {
        "lora": True,
        "linear-probe": True,
    }
    assert len(read_rows(tmp_path / "out")) == 8
    told = {line["method"] for line in json.loads((tmp_path / "out" / "summary.json").read_text()) if line["outermost"]}
    assert {name for name in ("lora", "linear-probe") if f"{name} (train)" in captured.out} == told
    with pytest.raises(SystemExit) as left:
        main([*command])
    assert left.value.code == 2
    assert "--output is missing" in capsys.readouterr().err


def test_what_is_wrong_with_a_study_file_is_said_in_its_own_words(
    parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**parts, "options": {"text_column": ["review"]}}))
    with pytest.raises(SystemExit) as left:
        main(["compare", "--study", str(file), "--output", str(tmp_path / "out")])
    assert left.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{file}: options: 'text_column' is not an option. Did you mean 'text_columns'?" in error
    with pytest.raises(SystemExit):
        main(["compare", "--study", str(file), "--text-column", "review", "--output", str(tmp_path / "out")])
    assert "write --text-column into it" in " ".join(capsys.readouterr().err.split())


def test_ctrl_c_names_the_run_that_was_under_way(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**parts, "methods": {"linear-probe": {"learning_rates": 1e-2}}}))

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sptune.compare.study_run.load", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["compare", "--study", str(file), "--output", str(tmp_path / "out")])
    assert left.value.code == 130
    assert "Interrupted (linear-probe on words, seed 0, rate 0.01)" in " ".join(capsys.readouterr().err.split())


def test_ray_does_the_same_runs(parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    try:
        with monkeypatch.context() as patch:
            patch.setattr(comparing, "work", None)  # nothing is done in this process
            on_ray = compare({**parts, "seeds": [0]}, tmp_path / "ray", ray=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    here = compare({**parts, "seeds": [0]}, tmp_path / "here")
    scores = [{row["run"]: row["score"] for row in one.rows} for one in (on_ray, here)]
    assert scores[0] == scores[1]


def test_a_run_ends_without_leaving_its_folder(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    spec = run_of("lora", {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8})
    row = execute(spec, tmp_path / "run")
    assert row["state"] == "done", row
    assert not (tmp_path / "run").exists()
