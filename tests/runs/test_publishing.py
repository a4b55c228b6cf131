"""Pushing a finished adapter to a stand-in of the hub that speaks its HTTP interface."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub_server import Hub, hub_server
from sptune.errors import InputError
from sptune.runs.run import search, train

LOAD = """
import sys, sptune
from peft import PeftModel
from sptune import MeanPooledClassifier
backbone = MeanPooledClassifier.from_backbone(sys.argv[1], num_labels=2)
model = PeftModel.from_pretrained(backbone, "me/films")
print(model.base_model.generator_layers)
"""


@pytest.fixture(scope="module")
def hub() -> Any:
    with hub_server() as running:
        yield running


def run(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, because huggingface_hub reads the hub's address when it is imported."""
    # This machine's proxy knows nothing of a hub on it.
    own = {**os.environ, **hub.environment, "NO_PROXY": "*", "no_proxy": "*", "COLUMNS": "400", **environment}
    return subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def command(data: dict[str, str], masked_lm: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A quick run of the command line, without its folder."""
    files = [part for name, path in data.items() for part in (f"--{name.replace('_', '-')}", path)]
    return ["-m", "sptune", "train", "--model", masked_lm, *files, "--prompt-layers", "1", "--max-steps", "2",
            "--no-linear-probe", "--push-to-hub", "me/films"]  # fmt: skip


@pytest.fixture(scope="module")
def pushed(hub: Hub, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose first push failed, and whose second did not."""
    folder = tmp_path_factory.mktemp("pushed") / "films"
    own = Path(shutil.copy(command[command.index("--train-file") + 1], folder.parent))
    hub.broken = True
    first = run(hub, *command, "--train-file", str(own), "--hub-private", "--output", str(folder))
    hub.broken = False
    assert first.returncode == 1, first.stderr
    told = " ".join(first.stderr.split())
    again = f"sptune train --output {folder} --resume --push-to-hub me/films --hub-private"
    assert f"The run in {folder} is finished and complete, but its adapter could not be pushed to me/films" in told
    assert f"Push it again with: {again}" in told
    assert (folder / "metrics.json").exists()
    assert not hub.files["me/films"]
    own.unlink()
    second = run(hub, "-m", *again.split())
    assert second.returncode == 0, second.stderr
    assert f"The adapter is at {hub.url}/me/films" in " ".join(second.stderr.split())
    return folder


def test_the_hub_has_the_adapter_folder(hub: Hub, pushed: Path) -> None:
    files = hub.files["me/films"]
    for path in (pushed / "adapter").iterdir():
        if path.name != "README.md":
            assert files[path.name] == path.read_bytes()
    assert {*files} == {path.name for path in (pushed / "adapter").iterdir()}
    assert hub.private["me/films"]
    assert len(hub.messages) == 1


def test_the_card_has_the_metrics_for_the_hub_and_the_id_to_load_from(hub: Hub, pushed: Path) -> None:
    card = hub.files["me/films"]["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    metrics = yaml.safe_load((pushed / "metrics.json").read_text())
    assert {one["type"]: one["value"] for one in result["metrics"]} == {"accuracy": metrics["test"]["accuracy"]}
    assert result["dataset"]["split"] == "test"
    assert 'PeftModel.from_pretrained(backbone, "me/films")' in card
    assert "hf download me/films" in card
    assert "path/to/this/folder" not in card


def test_peft_loads_the_adapter_from_the_hub(hub: Hub, pushed: Path, masked_lm: str, tmp_path: Path) -> None:
    loaded = run(hub, "-c", LOAD, masked_lm, HF_HOME=str(tmp_path))
    assert loaded.stdout.strip() == "[1]", loaded.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"HF_TOKEN": "hf_wrong"}, "the repository cannot be made on http://127.0.0.1"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the id, the token's permission to write, and the network"),
    ],
)
def test_a_hub_that_refuses_is_told_before_training(
    change: dict[str, str], message: str, hub: Hub, command: list[str], tmp_path: Path
) -> None:
    ended = run(hub, *command, "--output", str(tmp_path / "run"), **change)
    assert ended.returncode == 2, ended.stderr
    assert message in " ".join(ended.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_hub_that_refuses_leaves_the_run_that_was_to_be_replaced(hub: Hub, command: list[str], pushed: Path) -> None:
    before = {path: path.read_bytes() for path in pushed.rglob("*") if path.is_file()}
    ended = run(hub, *command, "--output", str(pushed), "--overwrite", HF_TOKEN="hf_wrong")
    assert ended.returncode == 2, ended.stderr
    assert {path: path.read_bytes() for path in pushed.rglob("*") if path.is_file()} == before


def test_a_repository_of_others_is_refused_before_training(hub: Hub, command: list[str], tmp_path: Path) -> None:
    hub.files["someone/films"] = {}
    ended = run(hub, *command[:-1], "someone/films", "--output", str(tmp_path / "run"))
    assert ended.returncode == 2, ended.stderr
    assert "the token is of me, who cannot write to repositories of someone" in " ".join(ended.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"push_to_hub": "me//films"}, "push_to_hub='me//films' is not an id of a repository"),
        ({"push_to_hub": "a/b/c"}, "push_to_hub='a/b/c' is not an id of a repository"),
        ({"hub_private": True}, "hub_private has no effect without push_to_hub"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_read(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        train(model="nowhere", train_file="no.csv", prompt_layers=[1], **change, output_dir=tmp_path / "run")


def test_without_a_token_or_without_the_hub_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": "nowhere", "train_file": "no.csv", "prompt_layers": [1], "push_to_hub": "me/films"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="needs the hub, and HF_HUB_OFFLINE turns it off"):
        train(**options, output_dir=tmp_path / "run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"needs a token of the hub that may write; log in with 'hf auth login'"):
        train(**options, output_dir=tmp_path / "run")


def test_a_search_alone_has_nothing_to_push(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="search trains no final network, so push_to_hub='me/films' has no effect"):
        search(**options, push_to_hub="me/films", output_dir=tmp_path / "run")
