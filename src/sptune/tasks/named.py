"""Data sets by name: from the hub, from a local folder or file, or as `save_to_disk` wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.problems import Problems
from sptune.tasks.reading import READERS, RowSource, class_names, format_of, open_file

# Opens a split, which may lie in several files.
Opener = Callable[[], list[RowSource]]


def open_data(name: str, config: str | None, columns: list[str]) -> tuple[dict[str, Opener], list[str]]:
    """The splits of a data set: an id on the hub, a folder of files, a folder that `save_to_disk` wrote, or one file.

    Datasets finds the files of a folder and their splits, but would guess types from their text: they are read by the
    same readers as any other file.

    Args:
        name: of the data set.
        config: its configuration, or None.
        columns: those to read.

    Returns:
        How to open each split, by its name, and notes.

    Raises:
        InputError: nothing under that name, a configuration missing or unknown, no network.
    """
    import datasets

    path = Path(name)
    is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    if config is not None and (is_saved or path.is_file()):
        raise InputError(f"data_config={config!r}: {name} has no configurations; leave data_config out.")
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
        raise InputError(_why_not_loaded(name, config, path.exists(), error)) from error
    return {split: partial(_open_split, f"{name}[{split}]", dataset, columns) for split, dataset in loaded.items()}, []


def _saved_splits(folder: Path) -> dict[str, Any]:
    """What `save_to_disk` wrote, without the format it was saved in, whose library may not be installed."""
    import datasets

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


def _folder_splits(folder: Path, builder: Any) -> tuple[dict[str, Opener], list[str]]:
    """How to open the splits of a folder of files as Datasets' builder finds them, and a note on files left out."""
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
                f"{unused[0]}{more}: not read. Datasets takes files of one format, and those whose names say their "
                "split, if there are any."
            )
    names = class_names(builder.info.features)
    return {split: partial(_open_files, paths, names) for split, paths in splits.items()}, notes


def _data_files(folder: Path) -> list[Path]:
    """All files of a folder that can be read, but for those that Datasets takes for hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if format_of(path) in READERS
        and path.is_file()
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json", "config.json")
    ]


def _open_files(paths: Sequence[Path], declared: dict[str, list[str]]) -> list[RowSource]:
    sources = [open_file(path) for path in paths]
    for source in sources:
        source.class_names |= declared
    return sources


def _why_not_loaded(name: str, config: str | None, is_local: bool, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) and is_local else error
    reason = " ".join(str(cause).split())[:300]
    shown = f"{name!r}" + (f" with configuration {config!r}" if config else "")
    if "builderconfig" in reason.lower() or "config name" in reason.lower():
        remedy = "Name one of its configurations (data_config), or leave it out where there is one only."
    elif is_local:
        remedy = (
            "Check that the folder holds .jsonl, .csv or .parquet files, all in one format, named after their split "
            "(train, validation, test), or was written by save_to_disk; or name the files one by one (train_file, "
            "validation_file, test_file)."
        )
    elif isinstance(error, ConnectionError):
        remedy = (
            "Without a network give a local folder instead, or files (train_file, validation_file, test_file); a "
            "data set that was loaded once is found again in the cache."
        )
    else:
        remedy = (
            "Check the name (owner/name on the hub, or the path of a folder); a private or gated data set needs `hf "
            "auth login`."
        )
    return f"The data {shown} cannot be loaded: {reason.rstrip('.') or type(error).__name__}. {remedy}"


def _open_split(name: str, dataset: Any, columns: list[str]) -> list[RowSource]:
    """The rows of one split of a data set; row numbers are those of the data set, from 0, so `dataset[number]`."""
    present = [column for column in columns if column in dataset.column_names]
    # Problems take 0 for the whole source, so rows count from 1 until they are shown.
    problems = Problems(name, lambda number: f"{name}[{number - 1}]")
    rows = enumerate(dataset.select_columns(present), start=1)
    return [RowSource(name, rows, problems, list(dataset.column_names), class_names(dataset.features))]
