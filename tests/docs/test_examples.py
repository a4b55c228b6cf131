"""Every example in the README and the docs runs as it stands, with tiny models of the names that it uses.

Commands train for two steps and start no other program: of `make`, `python` and `pip` it is checked that the target,
the script and its options, and the extra exist. Of sessions on a console, which serve or ask a server, the options are
checked.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sptune.cli.app import app
from sptune.cli.commands import main
from sptune.compare.study import Study
from sptune.errors import InputError
from sptune.tasks.data import read_labeled
from sptune.tasks.data.generation_data import read_prompts
from sptune.tasks.generation_task import GenerationTask

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TWO_STEPS = ["--max-steps", "2"]
QUICK = {
    "fit": TWO_STEPS,
    "train": TWO_STEPS,
    "search": ["--search-steps", "2"],
    "compare": [*TWO_STEPS, "--seeds", "0"],
}


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def commands(page: Path) -> Iterator[list[str]]:
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs_as_pasted(page: Path, workplace: Path) -> None:
    for study in blocks(page, "yaml")[-1:]:
        Path("study.yaml").write_text(study, encoding="utf-8")
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, example {number + 1}", "exec"), names)


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_run(page: Path, workplace: Path) -> None:
    for command in commands(page):
        if command[0] in ("accelerate", "torchrun") and "-m" in command:
            command = command[command.index("-m") + 1 :]
        program, *arguments = command
        if program == "sptune":
            run(arguments)
        else:
            check_named(program, arguments)


def run(arguments: list[str]) -> None:
    """Run `sptune` for two steps; of a study only show what it would do."""
    study = "--study" in arguments
    more = ["--dry-run"] if study else [] if "--config" in arguments else QUICK.get(arguments[0], [])
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *more])
    assert not ended.value.code, arguments


def check_named(program: str, arguments: list[str]) -> None:
    """The target, the script with its options, or the package with its extra is there."""
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(f"\n{name}:" in targets for name in arguments)
    elif program == "python":
        script, *options = arguments
        known = "".join(path.read_text(encoding="utf-8") for path in (ROOT / script, ROOT / "benchmarks/searchers.py"))
        assert all(f'"{option}"' in known for option in options if option.startswith("--")), arguments
    else:
        assert [program, *arguments[:-1]] == ["pip", "install"]
        extras = re.fullmatch(r"\.(?:\[(.+)\])?", arguments[-1])[1]
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert not extras or all(f"\n{extra} = [" in project for extra in extras.split(","))


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_on_a_console_are_as_the_programs_take_them(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if not line.startswith("$ "):
                continue
            program, *arguments = shlex.split(line.removeprefix("$ "))
            if program == "sptune":
                command = typer.main.get_command(app).commands[arguments[0]]
                command.make_context(arguments[0], arguments[1:])
            elif program == "curl":
                json.loads(arguments[-1])
            else:
                check_named(program, arguments)


@pytest.mark.parametrize(("language", "ending"), [("json", "jsonl"), ("csv", "csv")])
def test_data_are_read_as_shown(language: str, ending: str, tmp_path: Path) -> None:
    shown = [block for page in PAGES for block in blocks(page, language)]
    assert shown
    for block in shown:
        file = tmp_path / f"train.{ending}"
        file.write_text(block, encoding="utf-8")
        if "topics" in block:
            how: dict[str, Any] = {"label_column": "topics", "labels": ["acting", "scenes"], "kind": "multi_label"}
            assert [len(one.label or ()) for one in read_labeled(file, **how)] == [2, 0]
        elif "rating" in block:
            assert [one.label for one in read_labeled(file, label_column="rating", kind="regression")] == [9.5, 2]
        elif "label" in block:
            assert len(read_labeled(file, labels=["positive", "negative"])) == 2
        else:
            messages = '"messages"' in block
            task = GenerationTask.of_messages("shown", "messages") if messages else GenerationTask("shown")
            assert len(read_prompts(file, task)) == 1


def test_columns_of_labels_become_the_lists_of_the_same_labels(workplace: Path) -> None:
    (block,) = [
        one
        for one in blocks(ROOT / "docs" / "guides" / "labels-and-numbers.md", "python")
        if "csv" in one and "fit(" not in one
    ]
    exec(compile(block, "labels-and-numbers.md", "exec"), {})
    how: dict[str, Any] = {"label_column": "topics", "labels": ["acting", "scenes"], "kind": "multi_label"}
    lists = read_labeled("lists.jsonl", **how)
    assert [one.label for one in lists] == [one.label for one in read_labeled("topics.csv", **how)]


def test_errors_of_data_are_reported_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "guides" / "data.md"
    (shown,) = [block for block in blocks(page, "text") if block.startswith("reviews.csv has")]
    monkeypatch.chdir(tmp_path)
    Path("reviews.csv").write_text("text,label\nGood.,yes\n,no\nLong, but good.,yes\nBad.,\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_labeled("reviews.csv", labels=["yes", "no"])
    assert f"{error.value}\n" == shown


def test_a_text_that_is_no_number_is_reported_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = blocks(ROOT / "docs" / "guides" / "labels-and-numbers.md", "text")
    monkeypatch.chdir(tmp_path)
    Path("ratings.csv").write_text('text,rating\nGood.,9\nLong.,"7,5"\n', encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_labeled("ratings.csv", label_column="rating", kind="regression")
    assert f"{error.value}\n" == shown


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_study_files_are_read(page: Path, workplace: Path) -> None:
    for block in blocks(page, "yaml"):
        assert Study.from_mapping(yaml.safe_load(block), page.name).methods
