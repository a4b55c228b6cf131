"""The output folder of a run: its files, each written whole or not at all, and checks before it is written."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from sptune.errors import InputError
from sptune.runs.options.option_mappings import DATA_PATHS, GIVEN
from sptune.whole_files import PARTIAL, expanded, remove, write_json, write_text, written_whole

CONFIG_FILE = "config.yaml"
ADAPTER_FOLDER = "adapter"
SEARCH_FILE = "search.json"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
HISTORY_FILE = "training_history.json"
REPORT_FILE = "report.html"
SEARCH_PICTURES = ("search.png", "search.svg")
CHECKPOINTS_FOLDER = "checkpoints"
TENSORBOARD_FOLDER = "tensorboard"
TASK_FILE = "task.json"
# Of a YAML file of options.
MAX_VALUES = 100_000
# Bytes of a line that is read to tell what a file holds.
MAX_LINE = 2**24
# In config.yaml: the record of the command that wrote it.
COMMAND = re.compile(r"^command: (\w+)$", re.MULTILINE)

# In the order in which a run that is replaced is removed: first what tells that it is finished, last what tells that
# there is one.
RUN_FILES = (
    METRICS_FILE,
    SEARCH_FILE,
    ADAPTER_FOLDER,
    PREDICTIONS_FILE,
    HISTORY_FILE,
    REPORT_FILE,
    *SEARCH_PICTURES,
    CHECKPOINTS_FOLDER,
    TENSORBOARD_FOLDER,
    CONFIG_FILE,
)


def results_file(command: str) -> str:
    """The file that tells that a run of this command is finished."""
    return SEARCH_FILE if command == "search" else METRICS_FILE


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line, the file whole or not at all."""
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def file_lock(path: Path) -> FileLock:
    """The lock that whoever changes a file that processes share must hold."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Adds a line to a file that processes share, in place of one that a killed process left unfinished."""
    with file_lock(path), path.open("ab+") as file:
        file.seek(0)
        *_, last = (data := file.read()).split(b"\n")
        if _is_whole(last):
            file.write(b"\n")
        else:
            file.truncate(len(data) - len(last))
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file, none if there is no file; one that was cut off while it was written is left out."""
    *lines, last = (path.read_bytes() if path.exists() else b"").split(b"\n")
    return [json.loads(line) for line in (*lines, *([last] if _is_whole(last) else []))]


def _is_whole(last: bytes) -> bool:
    """Whether what follows the last line break is a row, as an editor may leave it, and not one that was cut off."""
    try:
        return isinstance(json.loads(last), dict)
    except ValueError:
        return False


def write_config(path: Path, command: str, options: dict[str, Any], given: Collection[str], processes: int = 1) -> None:
    """Writes config.yaml: the resolved options, which --config reads back, and a record of versions and data.

    Args:
        path: the file.
        command: of the run.
        options: the resolved options.
        given: the names of those that the user asked for.
        processes: the number of processes that share the run.
    """
    records = {
        "command": command,
        GIVEN: [name for name in options if name in given],
        "processes": processes,
        "versions": versions(),
        "data_files": {
            file: content(Path(file)) for file in map(options.get, DATA_PATHS) if file and Path(file).is_file()
        },
    }
    heading = (
        f"# What 'sptune {command}' ran with. Repeat it: sptune {command} --config {path.name} --output OTHER\n"
        f"# An option that you change here: name it under {GIVEN!r}, too. What is not named there is a default.\n"
    )
    write_text(path, heading + yaml.safe_dump({**options, **records}, sort_keys=False, allow_unicode=True))


def begun_command(folder: Path) -> str | None:
    """The command of the run that a folder holds; None if it has no config.yaml, or one that no run wrote."""
    path = folder / CONFIG_FILE
    found = COMMAND.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return found[1] if found else None


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file of options holds.

    Raises:
        InputError: no such file, broken YAML, something else than a mapping, or too many values.
    """
    path = expanded(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; name a YAML file of options.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: is not valid YAML: {problem}.") from None
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        # An impossible date or number, or lists that are nested too deeply.
        raise InputError(f"{path}: holds a value that YAML cannot read ({error}).") from None
    if _size(values, {}) > MAX_VALUES:
        raise InputError(f"{path}: holds more than {MAX_VALUES:,} values, with those that aliases (*name) repeat.")
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}, not options; write one 'name: value' a line.")
    return values


def _size(value: Any, known: dict[int, float]) -> float:
    """The number of values in a value; a few lines of YAML can stand for billions, or for a list that holds itself.

    Args:
        value: the value.
        known: the sizes of lists and mappings by identity.
    """
    if not isinstance(value, list | dict | set | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # while it is counted: it holds itself if it is met again
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that a run must not write into; touches nothing.

    Raises:
        InputError: the folder holds a run and neither is set, there is no run to resume, or what it holds is not of a
            run.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder for what the run writes.")
    if resume and not (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder}: holds no run to resume ({CONFIG_FILE} is missing); leave out --resume.")
    if (folder / CONFIG_FILE).exists() and begun_command(folder) is None:
        raise InputError(
            f"{folder / CONFIG_FILE}: was not written by a run, and a run would write its own in its place; move it, "
            "or name another output folder."
        )
    held = [name for name in RUN_FILES if (folder / name).exists()]
    if held and CONFIG_FILE not in held:
        raise InputError(
            f"{folder}: holds {', '.join(held)}, not written by a run ({CONFIG_FILE} is missing), and a run would "
            "write its own there; move what is in the folder, or name another output folder."
        )
    if held and not (resume or overwrite):
        raise InputError(
            f"{folder}: holds a run already ({', '.join(held)}); continue it with --resume, replace it with "
            "--overwrite, or name another folder."
        )


def check_file(path: Path, *, overwrite: bool, read: Path | None = None) -> None:
    """Refuses a file of JSON Lines that must not or cannot be written; touches nothing that lasts.

    Args:
        path: the file to write.
        overwrite: it may exist already.
        read: what the user's data are read from, which is never written over.

    Raises:
        InputError: the file is there, or is the data, or lies where none can be, or is no JSON Lines.
    """
    try:
        _check_place(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); name another file.") from None
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file and cannot be replaced; name another.")
    if read is not None and path.exists() and read.exists() and path.samefile(read):
        raise InputError(f"{path}: is the data themselves; name another file for the predictions.")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; replace it with --overwrite, or name another file.")
    if path.exists() and not _holds_json_lines(path):
        raise InputError(
            f"{path}: holds something else than JSON Lines, which is not replaced by them; name another file, or "
            "remove this one."
        )


def _check_place(path: Path) -> None:
    """Write a file beside a file that is to be written, as the file itself will be, and remove it.

    Raises:
        InputError: the place is within a file.
        OSError: the system writes no such file there.
    """
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise InputError(f"{path}: does not lie in a folder; name another file.")
    # Folders between the first that is there and the file are made when it is written.
    folder = next(parent for parent in path.parents if parent.exists())
    probe = folder / (PARTIAL + path.name)
    with contextlib.suppress(FileExistsError):  # of another process that writes there
        probe.touch(exist_ok=False)
        probe.unlink()


def _holds_json_lines(path: Path) -> bool:
    """Whether a file is empty, or begins with a line of JSON Lines."""
    with path.open("rb") as file:
        line = file.readline(MAX_LINE)
    try:
        return not line or isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return len(line) == MAX_LINE and line.startswith(b"{")


def check_sources(folder: Path, sources: Iterable[str | None]) -> None:
    """Refuses to replace a run that the next one reads from, or whose options it takes; touches nothing.

    Args:
        folder: whose run is to be replaced.
        sources: files, local folders, or names of other things.

    Raises:
        InputError: a source is among the files of the run.
    """
    for source in filter(None, sources):
        place = Path(source).resolve()
        within = [name for name in RUN_FILES if (folder / name).resolve() in (place, *place.parents)]
        if place.exists() and within:
            raise InputError(
                f"{source}: would be removed with the run in {folder} (--overwrite); name another output folder, or "
                "move it."
            )


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    remove(folder / CHECKPOINTS_FOLDER)


def versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    packages = ("sptune", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def write_adapter(folder: Path, model: Any, task_document: dict[str, Any], card: str) -> int:
    """Writes the adapter folder: what `save_pretrained` writes, task.json and the model card.

    Returns:
        The size in bytes of the adapter's weights.
    """
    with written_whole(folder) as partial:
        model.save_pretrained(partial)
        write_json(partial / TASK_FILE, task_document)
        write_text(partial / "README.md", card)
    return weight_bytes(folder)


def weight_bytes(adapter: Path) -> int:
    """Size in bytes of an adapter's weight files."""
    return sum(file.stat().st_size for file in adapter.glob("adapter_model*"))


def content(file: Path) -> dict[str, Any]:
    """SHA-256 and size of a file of data."""
    return {"sha256": file_digest(file), "bytes": file.stat().st_size}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
