"""Opens a Hugging Face dataset from the hub, a folder of files, a folder written by `save_to_disk`, or one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from sptune.errors import InputError
from sptune.tasks.data.error_report import ErrorReport
from sptune.tasks.data.file_reader import READERS, file_format, open_file
from sptune.tasks.data.row_source import RowSource, declared_class_names
from sptune.whole_files import expanded

# Opens a split, which may consist of several files.
SplitOpener = Callable[[], list[RowSource]]


def open_dataset(name: str, config: str | None, columns: list[str]) -> tuple[dict[str, SplitOpener], list[str]]:
    """Find the splits of a dataset.

    The datasets library finds the files of a folder and their splits, but guesses types from text. So the readers of
    this package read the files.

    Args:
        name: an id on the hub, a folder of files, a folder written by `save_to_disk`, or one file.
        config: the configuration of the dataset, or None.
        columns: the columns to read.

    Returns:
        A function for each split, by name, that opens it; and notes.

    Raises:
        InputError: if the dataset cannot be found or loaded, or its configuration is missing or unknown.
    """
    path = expanded(name)
    is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if config is not None and (is_saved or path.is_file()):
        raise InputError(f"dataset_config={config!r}: {name} has no configurations; leave dataset_config out.")
    if path.is_file():
        return {"train": lambda: [open_file(path)]}, []
    try:
        if is_saved:
            loaded = _saved_splits(path)
        else:
            place = str(path.resolve()) if path.is_dir() else name
            builder = datasets.load_dataset_builder(place, config) if path.is_dir() else None
            if builder is not None and builder.name in ("csv", "json", "parquet"):
                return _folder_splits(path, builder)
            loaded = dict(datasets.load_dataset(place, config))
    except Exception as error:
        raise InputError(_load_error(name, config, path.exists(), error)) from error
    return {split: partial(_open_split, f"{name}[{split}]", dataset, columns) for split, dataset in loaded.items()}, []


def _saved_splits(folder: Path) -> dict[str, Any]:
    """The splits of a folder written by `save_to_disk`.

    The format (such as "jax") is ignored, because its library may not be installed.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        return {name: _saved_splits(folder / name)["train"] for name in names}
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    files = [str(folder / file["filename"]) for file in state["_data_files"]]
    if not files:
        features = datasets.DatasetInfo.from_directory(str(folder)).features
        return {"train": datasets.Dataset.from_dict({name: [] for name in features or ()}, features=features)}
    return {"train": datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])}


def _folder_splits(folder: Path, builder: Any) -> tuple[dict[str, SplitOpener], list[str]]:
    """The splits of a folder, as the builder of the datasets library finds them, and a note on unused files."""
    whole = folder.resolve()

    def shown(file: str) -> Path:
        return folder / Path(file).relative_to(whole) if Path(file).is_relative_to(whole) else Path(file)

    splits = {str(split): [shown(file) for file in files] for split, files in builder.config.data_files.items()}
    notes = []
    if builder.config.name == "default":
        used = {path.resolve() for paths in splits.values() for path in paths}
        unused = [path for path in _data_files(folder) if path.resolve() not in used]
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            notes.append(
                f"{unused[0]}{more}: not used. The datasets library reads files of one format and, if there are any, "
                "only those named after a split."
            )
    names = declared_class_names(builder.info.features)
    return {split: partial(_open_files, paths, names) for split, paths in splits.items()}, notes


def _data_files(folder: Path) -> list[Path]:
    """All files of a folder that can be read, except those that the datasets library regards as hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if file_format(path) in READERS
        and path.is_file()
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json", "config.json")
    ]


def _open_files(paths: Sequence[Path], declared: dict[str, list[str]]) -> list[RowSource]:
    sources = [open_file(path) for path in paths]
    for source in sources:
        source.class_names |= declared
    return sources


def _load_error(name: str, config: str | None, is_local: bool, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) and is_local else error
    reason = " ".join(str(cause).split())[:300]
    shown = f"{name!r}" + (f" with configuration {config!r}" if config else "")
    if "builderconfig" in reason.lower() or "config name" in reason.lower():
        remedy = "Name one of its configurations (dataset_config), or leave it out if there is only one."
    elif is_local:
        remedy = (
            "Check that the folder holds .jsonl, .csv or .parquet files, all in one format, named after their split "
            "(train, validation, test), or was written by save_to_disk; or name the files one by one (train_file, "
            "validation_file, test_file)."
        )
    elif isinstance(error, ConnectionError):
        remedy = (
            "Without a network, give a local folder or files (train_file, validation_file, test_file); a dataset that "
            "was loaded before is found in the cache."
        )
    else:
        remedy = (
            "Check the name (owner/name on the hub, or the path of a folder); a private or gated dataset needs `hf "
            "auth login`."
        )
    return f"The dataset {shown} cannot be loaded: {reason.rstrip('.') or type(error).__name__}. {remedy}"


def _open_split(name: str, dataset: Any, columns: list[str]) -> list[RowSource]:
    """The rows of one split of a dataset, with the row numbers of `dataset[number]`."""
    present = [column for column in columns if column in dataset.column_names]
    # Line 0 means the whole source in a report, so rows are counted from 1 and shown from 0.
    errors = ErrorReport(name, lambda number: f"{name}[{number - 1}]")
    rows = enumerate(dataset.select_columns(present), start=1)
    return [RowSource(name, rows, errors, list(dataset.column_names), declared_class_names(dataset.features))]
