"""The benchmarks keep up with the names of the package: each can be imported and describes how to run it."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
COMMANDS = [file.stem for file in sorted(FOLDER.glob("*.py")) if "def main()" in file.read_text()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_can_be_imported_and_says_how_to_run_it(name: str) -> None:
    module = importlib.import_module(name)
    assert callable(module.main)
    assert f"python benchmarks/{name}.py" in module.__doc__
