"""Fetch the tests that belong to the installed PEFT out of its source distribution, unless they are here already.

Wheels hold no tests. Usage: python fetch_peft_tests.py [options for pip]
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".peft"
"""What is fetched and built for the suite; git ignores it."""


def peft_tests() -> Path:
    """The folder that holds the package `peft_tests`: PEFT's tests of the installed version."""
    return CACHE / f"peft-{importlib.metadata.version('peft')}"


def fetch(pip_options: list[str]) -> None:
    """Download the source distribution and keep its tests, under a name that is not our own `tests`.

    Raises:
        SystemExit: the package registry has no source distribution of the installed version, or it holds no tests.
    """
    version = importlib.metadata.version("peft")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "peft", "--dest", folder]
        if subprocess.run([*pip, *pip_options, f"peft=={version}"]).returncode:
            sys.exit(f"PEFT {version} is installed, but its source distribution, which has its tests, was not found.")
        (archive,) = Path(folder).glob("peft-*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
        tests = Path(folder) / f"peft-{version}" / "tests"
        if not tests.exists():
            sys.exit(f"The source distribution of PEFT {version} has no tests.")
        peft_tests().mkdir(exist_ok=True)
        tests.rename(peft_tests() / "peft_tests")


if __name__ == "__main__":
    if not (peft_tests() / "peft_tests").exists():
        fetch(sys.argv[1:])
