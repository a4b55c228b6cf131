"""Runs on classes of unequal size: weights and focal loss reach every stage, and wrong ones are refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sptune.cli.commands import main
from sptune.errors import InputError
from sptune.runs.options.run_options import RunOptions
from sptune.runs.progress import Monitor
from sptune.runs.run import fit, search, train

LABEL_WORDS = {"template": "{text} It was [MASK] .", "label_words": {"good": "good", "bad": "bad"}}


class Notes(Monitor):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def first_losses(folder: Path, names: tuple[str, ...]) -> dict[str, float]:
    """The losses of the first step in which a search has all of these."""
    history = json.loads((folder / "search.json").read_text())["history"]
    return next(entry for entry in history if all(entry[name] is not None for name in names))


@pytest.mark.parametrize(
    ("searcher", "names"),
    [("darts", ("weight_loss", "gate_loss")), ("sampled", ("weight_loss", "gate_loss")), ("fair", ("loss",))],
)
def test_weights_multiply_the_losses_of_the_search(
    searcher: str, names: tuple[str, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    # Steps of 1e-12 leave the weights as they are.
    still = {"searcher": searcher, "learning_rate": 1e-12, "head_learning_rate": 1e-12, "num_prompt_layers": 1}
    options |= {**still, "search_steps": 3, **({} if searcher == "fair" else {"gate_learning_rate": 1e-12})}
    search(**options, output_dir=tmp_path / "plain")
    search(**options, output_dir=tmp_path / "weighted", class_weights={"good": 3, "bad": 3.0})
    plain, weighted = (first_losses(tmp_path / name, names) for name in ("plain", "weighted"))
    for name in names:
        assert weighted[name] == pytest.approx(3 * plain[name], rel=1e-4)


@pytest.mark.parametrize("kind", [{}, LABEL_WORDS], ids=["classifier", "label words"])
def test_a_class_of_much_weight_is_predicted(kind: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"learning_rate": 0.05, "prompt_layers": [1], "max_steps": 20, "linear_probe": False, **kind}
    counts = []
    for label in ("good", "bad"):
        run = train(**options, class_weights={label: 1000}, output_dir=tmp_path / label)
        rows = [json.loads(line) for line in (run.output_dir / "predictions.jsonl").read_text().splitlines()]
        counts.append(sum(row["prediction"] == "good" for row in rows))
        assert f"class_weights:\n  {label}: 1000.0\n" in (tmp_path / label / "config.yaml").read_text()
    assert counts[0] > counts[1]


def test_balanced_weights_are_of_the_training_data_and_told(
    data: dict[str, str], options: dict[str, Any], tmp_path: Path
) -> None:
    rows = Path(data["train_file"]).read_text().splitlines()
    bad, good = ([row for row in rows if f'"label": "{label}"' in row] for label in ("bad", "good"))
    unequal = tmp_path / "unequal.jsonl"
    unequal.write_text("\n".join([*bad[:6], *good[:18]]))
    options |= {"train_file": str(unequal), "prompt_layers": [1], "linear_probe": False, "max_steps": 2}
    notes = Notes()
    balanced = train(**options, class_weights="balanced", output_dir=tmp_path / "a", monitor=notes)
    assert "Weights of the classes: bad 2, good 0.667." in notes.told
    named = train(**options, class_weights={"bad": 2, "good": 2 / 3}, output_dir=tmp_path / "b")
    assert balanced.metrics["training"] == named.metrics["training"]
    texts = [(tmp_path / name / "training_history.json").read_text() for name in "ab"]
    assert texts[0] == texts[1]


def test_the_focal_loss_with_gamma_0_is_the_cross_entropy(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"prompt_layers": [1], "linear_probe": False, "max_steps": 4}
    histories = []
    for name, loss in (("a", {}), ("b", {"loss": "focal", "focal_gamma": 0}), ("c", {"loss": "focal"})):
        train(**options, **loss, output_dir=tmp_path / name)
        histories.append(json.loads((tmp_path / name / "training_history.json").read_text()))
    for entries in zip(*histories[:2], strict=True):
        assert entries[0] == pytest.approx(entries[1])
    assert histories[2][0]["training_loss"] < histories[0][0]["training_loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_weights": "equal"}, "class_weights='equal' is not allowed; give 'balanced', or a weight"),
        ({"class_weights": {"good": 0}}, "class_weights: 'good' has the weight 0; give a number above 0"),
        ({"class_weights": {"god": 2}}, "class_weights: 'god' is not a class of task 'train'; classes are bad, good"),
        ({"class_weights": {"good": "much"}}, "it takes text or a mapping of texts to numbers or nothing"),
        ({"loss": "hinge"}, "loss='hinge' is not allowed; choose one of cross_entropy, focal"),
        ({"focal_gamma": 1.0}, "focal_gamma=1.0 has no effect without loss='focal'"),
        ({"loss": "focal", "focal_gamma": -1}, "focal_gamma=-1.0 is not allowed; give 0 or more"),
        ({"loss": "focal", "task_kind": "regression"}, "task_kind='regression' has a loss of its own"),
    ],
)
def test_wrong_weights_and_losses_are_refused(
    change: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        fit(**options, **change, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["class_weights", "loss"])
def test_models_that_write_text_have_no_classes(name: str) -> None:
    value = {"class_weights": "balanced", "loss": "focal"}[name]
    with pytest.raises(InputError, match=f"{name}='{value}' is of tasks that predict classes"):
        RunOptions(model="gpt2", train_file="t.jsonl", task_kind="generate", **{name: value})


@pytest.mark.parametrize("given", [["good=2", "x=much"], ["balanced", "good=2"]])
def test_weights_on_the_command_line_are_numbers(
    given: list[str], options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for one in given for part in ("--class-weights", one)]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", options["model"], *flags, "--output", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "is not LABEL=WEIGHT; write for example positive=2" in capsys.readouterr().err
