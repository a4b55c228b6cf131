"""The files of an adapter folder, which may come from a stranger: only JSON and safetensors, and nothing outside of it.

Sizes are checked before a file is read, and headers before weights take memory.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sptune import whole_files
from sptune.config import SPTConfig
from sptune.errors import InputError, shortened
from sptune.runs.output_folder import ADAPTER_FOLDER, TASK_FILE

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The largest size of a JSON file and of the header of the weights, in bytes.
MAX_JSON, MAX_HEADER = 2**22, 2**24
# What Python raises where a value of a document is of a wrong type.
WRONG_VALUES = (TypeError, KeyError, ValueError, AttributeError, OverflowError, RecursionError)


def find_folder(adapter: str | Path) -> Path:
    """The adapter folder, given itself or the run's folder around it.

    Raises:
        InputError: there is no adapter.
    """
    adapter = whole_files.expanded(adapter)
    for folder in (adapter, adapter / ADAPTER_FOLDER):
        if os.path.isfile(folder / CONFIG_FILE):  # Path.is_file fails where a name is too long
            return folder
    if not os.path.isdir(adapter):
        raise InputError(f"{adapter}: there is no such folder; name the adapter folder that a run wrote.")
    raise InputError(f"{adapter}: holds no adapter (no {CONFIG_FILE}); name the adapter folder that a run wrote.")


def has_task(folder: Path) -> bool:
    """Whether an adapter folder says for which task its adapter was trained."""
    return os.path.lexists(folder / TASK_FILE)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        InputError: it is not the configuration of an SPT adapter.
    """
    config = _read_document(folder, CONFIG_FILE)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "SPT":
        raise InputError(
            f"{folder} holds a {shortened(kind).strip(chr(39))} adapter, not an SPT adapter; name one that sptune fit "
            "or train wrote."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of fields of other versions when it loads the adapter
            SPTConfig.from_peft_type(**config)
    except WRONG_VALUES as error:
        raise InputError(f"{folder / CONFIG_FILE}: {error}") from None
    return config


def read_task_document(folder: Path) -> dict[str, Any]:
    """The content of task.json.

    Raises:
        InputError: it is missing or incomplete.
    """
    path = folder / TASK_FILE
    if not has_task(folder):
        raise InputError(
            f"{folder} holds an adapter without {TASK_FILE}, which says what its classes and its input are; "
            "use one that sptune fit or train wrote, or load this one in Python with PeftModel.from_pretrained."
        )
    document = _read_document(folder, TASK_FILE)
    missing = {"task", "backbone", "max_length"} - set(document if isinstance(document, dict) else ())
    if missing:
        raise InputError(
            f"{path}: {', '.join(sorted(missing))} missing; use an adapter that sptune fit or train wrote."
        )
    return document


def read_sizes(folder: Path) -> dict[str, int]:
    """The number of elements of each tensor of the adapter; only the header of the weights file is read.

    Raises:
        InputError: there is no such file, or it is broken.
    """
    if not os.path.lexists(folder / WEIGHTS_FILE):
        raise InputError(
            f"{folder}: holds no {WEIGHTS_FILE}; weights in another format are not loaded. Save the adapter with "
            "save_pretrained, which writes it."
        )
    file = checked_file(folder, WEIGHTS_FILE)
    try:
        with file.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if MAX_HEADER < header < file.stat().st_size:
            raise InputError(f"{file}: its header has {header:,} bytes; at most {MAX_HEADER:,} are read.")
        with safe_open(file, framework="numpy") as weights:
            return {key: math.prod(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: cannot be read as safetensors ({error}); save the adapter again.") from None


def checked_file(folder: Path, name: str) -> Path:
    """A file of an adapter folder.

    Raises:
        InputError: it is no ordinary file, or a link out of the folder.
    """
    file = folder / name
    if not os.path.isfile(file):
        raise InputError(f"{file}: is missing or no ordinary file; use an adapter that sptune fit or train wrote.")
    place, root = file.resolve(), folder.resolve()
    if not any(place.is_relative_to(one) for one in (root, *_blobs(root))):
        raise InputError(f"{file}: is a link out of the folder, which is not followed; put a copy in its place.")
    return file


def _blobs(folder: Path) -> list[Path]:
    """Where the files of a snapshot in the cache of huggingface_hub are, which are links: snapshots/COMMIT, blobs."""
    return [one.parent / "blobs" for one in folder.parents if one.name == "snapshots"]


def _read_document(folder: Path, name: str) -> Any:
    file = checked_file(folder, name)
    size = file.stat().st_size
    if size > MAX_JSON:
        raise InputError(f"{file}: has {size:,} bytes; at most {MAX_JSON:,} are read.")
    return whole_files.read_json(file)
