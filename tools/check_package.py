"""Builds the source distribution and the wheel, and checks them as a stranger would find them.

    python tools/check_package.py [--torch 'torch==2.13.0'] [--python python3.12] [--extras]

builds both (the wheel from the source distribution and from the tree, which must give the same), checks what they hold
and that the description renders, installs the wheel into a fresh environment, and calls the command there: each thing
that needs an extra must say at once how to install it. With --extras, pip must be able to resolve every extra, too. The
packages come from the package registry. Ends with code 1 at the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import email
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Besides Python files of sptune, a wheel holds these.
NEEDED = ("sptune/py.typed", "sptune/report/templates/run.html.j2", "sptune/report/templates/page.js")
FOREIGN = ("tests/", "benchmarks/", "docs/", "runs/", "peft_suite/", "examples/", "tools/", "build/")
# Modules that only an extra can import, and what they may lack.
OPTIONAL = {"sptune.serve.replica", "sptune.serve.http_api"}
EXTRA_MODULES = {"ray", "fastapi", "starlette", "pydantic", "uvicorn"}

# Without any extra: arguments, and what the command must say.
COMMANDS = (
    ("--version", "sptune "),
    ("", "Usage: sptune"),
    ("fit --help", "--train-file"),
    ("fit", "model is missing, and so are the data"),
    ("tasks", "label words"),
    ("demo", "pip install 'sptune[demo]'"),
    ("serve runs/none", "pip install 'sptune[serve]'"),
    ("fit --gguf-file none.gguf --train-file none.csv --output none", "pip install 'sptune[gguf]'"),
    ("compare --model none --train-file none.csv --output none --ray auto", "pip install 'sptune[ray]'"),
)
IMPORT_ALL = f"""
import importlib, pkgutil, sptune
for module in pkgutil.walk_packages(sptune.__path__, "sptune."):
    if module.name == "sptune.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert module.name in {OPTIONAL} and error.name.split(".")[0] in {EXTRA_MODULES}, (module.name, error)
from sptune.report.page import TEMPLATES
assert all(TEMPLATES.get_template(name) for name in TEMPLATES.list_templates(["j2"]))
"""


class WrongPackageError(Exception):
    """What is wrong with the package."""


def call(*command: str | Path, ends_well: bool = True) -> str:
    """Run a command in an empty folder, where nothing can be imported by chance; returns what it prints.

    Raises:
        WrongPackageError: it fails, unless it may.
    """
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=empty, check=False)
    if ends_well and done.returncode:
        raise WrongPackageError(f"{shlex.join(map(str, command))}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout + done.stderr


def build(folder: Path) -> tuple[Path, Path]:
    """The source distribution and the wheel that is built from it.

    Raises:
        WrongPackageError: they cannot be built, or another wheel comes from the tree.
    """
    tree = copy_tree(folder / "tree")
    call(sys.executable, "-m", "build", "--outdir", folder, tree)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "again", tree)
    (other,) = (folder / "again").glob("*.whl")
    if contents(wheel) != contents(other):
        differing = {name for name, _ in contents(wheel).items() ^ contents(other).items()}
        raise WrongPackageError(f"The wheels of the tree and of the source distribution differ in {sorted(differing)}.")
    return source, wheel


def copy_tree(folder: Path) -> Path:
    """A copy of the repository without ignored files, since setuptools leaves files in a tree and takes up old ones."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_contents(source: Path, wheel: Path) -> None:
    """Refuse a wheel that lacks files of sptune, or holds others; and a source distribution that cannot be tested.

    Raises:
        WrongPackageError: which.
    """
    held = contents(wheel)
    modules = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "sptune").rglob("*.py")}
    missing = sorted({*modules, *NEEDED} - set(held))
    more = [name for name in held if not name.startswith("sptune/") and ".dist-info/" not in name]
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    stray = [name for name in [*held, *names] if "__pycache__" in name or name.endswith(".pyc")]
    if missing or more or stray:
        raise WrongPackageError(f"missing: {missing}; should not be there: {more + stray}")
    if not any(name.endswith("licenses/LICENSE") for name in held):
        raise WrongPackageError(f"{wheel.name} holds no LICENSE.")
    foreign = [name for name in held if name.startswith(FOREIGN)]
    if foreign:
        raise WrongPackageError(f"{wheel.name} holds {foreign}.")


def check_installed(python: Path) -> None:
    """Call the command and import all modules in an environment without extras.

    Raises:
        WrongPackageError: what does not work.
    """
    script = python.with_name("sptune")
    for arguments, told in COMMANDS:
        printed = " ".join(call(script, *arguments.split(), ends_well=False).split())
        if told not in printed or "Traceback" in printed:
            raise WrongPackageError(f"sptune {arguments}: should say {told!r}, but says {printed[-2000:]!r}")
        print(f"sptune {arguments}: as it should be", flush=True)
    call(python, "-c", IMPORT_ALL)
    print("All modules can be imported.", flush=True)


def extras(wheel: Path) -> list[str]:
    """The extras that a wheel declares."""
    (name,) = (name for name in contents(wheel) if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(contents(wheel)[name]).get_all("Provides-Extra") or []


def main() -> int:
    """Build and check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch", help="what is installed first, as pip takes it")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the fresh environment")
    parser.add_argument("--extras", action="store_true", help="resolve every extra")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        try:
            source, wheel = build(work / "dist")
            print(f"Built {source.name} and {wheel.name}, which is the same from the tree.", flush=True)
            check_contents(source, wheel)
            call(sys.executable, "-m", "twine", "check", "--strict", source, wheel)
            print("Contents and description are as they should be. Installing (minutes)", flush=True)
            python = work / "venv" / "bin" / "python"
            pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            call(options.python, "-m", "venv", work / "venv")
            call(*pip, *shlex.split(options.torch))
            call(*pip, wheel)
            call(python, "-m", "pip", "check")
            check_installed(python)
            for extra in extras(wheel) if options.extras else ():
                call(*pip, "--dry-run", f"{wheel}[{extra}]")
                print(f"The extra {extra!r} can be installed.", flush=True)
        except WrongPackageError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
