"""Methods of the library `adapters`, which needs transformers 4.57; `make conformance` runs these."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sptune.compare import METHODS, Study
from sptune.compare.methods import ADAPTERS
from sptune.compare.networks import attach, saved_bytes, trained_parameters
from sptune.compare.study_run import execute
from sptune.runs import stages
from sptune.runs.job import load
from sptune.runs.plan import prepare
from sptune.runs.progress import Monitor

pytest.importorskip("adapters")

NAMES = [name for name, method in METHODS.items() if method.kind == ADAPTERS]


def run_of(method: str, options: dict[str, Any], **settings: Any) -> Any:
    """The only reported run of a study of one method."""
    own = {"learning_rates": 1e-3, **settings}
    study = Study.from_mapping({"methods": {method: own}, "tasks": {"t": options}, "seeds": [0]}, "study")
    (spec,) = study.final_runs({})
    return spec


@pytest.mark.parametrize("name", NAMES)
def test_adapters_and_the_head_are_trained_and_nothing_else(
    name: str, data: dict[str, str], masked_lm: str, tmp_path: Path
) -> None:
    narrow = {"reduction_factor": 8} if name == "compacter" else {}  # its bottleneck must divide by phm_dim
    spec = run_of(name, {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8}, **narrow)
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    network = attach(spec.method, job).module
    before = {key: value.clone() for key, value in network.named_parameters()}
    stages.train_network(job, network, "")
    changed = {key for key, value in network.named_parameters() if not torch.equal(value, before[key])}
    assert changed
    assert all("compared" in key or "classifier" in key or "shared_parameters" in key for key in changed)
    assert any("classifier" in key for key in changed)
    assert any("classifier" not in key for key in changed)
    assert 0 < trained_parameters(network, job)["added"] < saved_bytes(network, tmp_path / "saved")


def test_the_weights_of_the_last_step_may_be_the_best(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    """Of this version of transformers too, whose trainer evaluates at multiples of the interval only, here of 2."""
    spec = run_of("pfeiffer", {**data, "model": masked_lm, "max_steps": 7, "batch_size": 8})
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    trainer = stages.train_network(job, attach(spec.method, job).module, "")
    assert [entry["step"] for entry in trainer.state.log_history if "eval_score" in entry] == [2, 4, 6, 7]


def test_adapterdrop_leaves_the_lower_half_out(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    options = {**data, "model": masked_lm, "max_steps": 2, "batch_size": 8}
    sizes = {}
    for name in ("pfeiffer", "adapterdrop"):
        row = execute(run_of(name, options), tmp_path / name)
        assert row["state"] == "done", row
        sizes[name] = row["parameters"]["added"]
    assert sizes["adapterdrop"] * 3 == sizes["pfeiffer"] * 2  # one of three layers has none


def test_verbalizers_take_adapters_too(data: dict[str, str], causal_lm: str, tmp_path: Path) -> None:
    words = {"template": "{text} It was [MASK] .", "label_words": {"good": "good", "bad": "bad"}}
    row = execute(run_of("pfeiffer", {**data, **words, "model": causal_lm, "max_steps": 2, "batch_size": 8}), tmp_path)
    assert row["state"] == "done", row


def test_a_fresh_pooler_learns_at_the_rate_of_the_head(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    """The adapters do not: a checkpoint of a language model has no pooler, so that it belongs to the head."""
    options = {**data, "model": masked_lm, "max_steps": 1, "batch_size": 8, "head_pooling": "own"}
    spec = run_of("pfeiffer", {**options, "head_learning_rate": 1e-2})
    job = load(prepare("compare", spec.run_options(tmp_path), Monitor()))
    trainer = stages.train_network(job, attach(spec.method, job).module, "")
    groups = trainer.optimizer.param_groups
    assert {group["initial_lr"] for group in groups} == {1e-3, 1e-2}
    in_head = [len(group["params"]) for group in groups if group["initial_lr"] == 1e-2]
    assert sum(in_head) == 4  # weights and biases of pooler and classifier
