"""Decides which files or splits of a dataset serve as training, validation and test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.tasks.data.file_reader import open_file
from sptune.tasks.data.hub_dataset import SplitOpener, open_dataset
from sptune.tasks.data.label_checks import is_missing
from sptune.tasks.data.row_source import RowSource
from sptune.whole_files import expanded

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "dev", "valid", "val"),
    "test": ("test",),
}


def open_roles(
    files: tuple[str | Path | None, str | Path | None, str | Path | None],
    dataset: str | None,
    dataset_config: str | None,
    split_names: Mapping[str, str | None],
    columns: Sequence[str],
    answer_columns: Sequence[str],
    notes: list[str],
) -> dict[str, SplitOpener]:
    """Functions that open the files, or the splits of a dataset, by role.

    Args:
        files: training, validation and test data, unless `dataset` is given.
        dataset: as in `open_dataset`.
        dataset_config: as in `open_dataset`.
        split_names: as in `openers_of_splits`.
        columns: the columns to read.
        answer_columns: as in `openers_of_splits`.
        notes: receives notes on the dataset.

    Raises:
        InputError: if not exactly one source of the training data is given, or a split is not clear.
    """
    train_file, validation_file, test_file = files
    if dataset is not None and not any(file is not None for file in files):
        splits, more = open_dataset(dataset, dataset_config, list(columns))
        notes.extend(more)
        return openers_of_splits(dataset, splits, split_names, answer_columns, notes)
    if dataset is None and train_file is not None:
        return openers_of_files(train_file, validation_file, test_file)
    if (dataset is None) == (train_file is None):
        raise InputError(
            "Give either files (train_file, and optionally validation_file and test_file) or a Hugging Face dataset "
            "(dataset)."
        )
    raise InputError("validation_file and test_file go with train_file, not with dataset; leave one or the other out.")


def openers_of_files(
    train_file: str | Path, validation_file: str | Path | None, test_file: str | Path | None
) -> dict[str, SplitOpener]:
    """Functions that open the given files, by role.

    Raises:
        InputError: if two of them are the same file.
    """
    given = {"train": train_file, "validation": validation_file, "test": test_file}
    paths = {role: expanded(path) for role, path in given.items() if path is not None}
    resolved: dict[Path, str] = {}
    for role, path in paths.items():
        other = resolved.setdefault(path.resolve(), role)
        if other != role:
            raise InputError(
                f"{other}_file and {role}_file are the same file, {path}. Scores on training data mean nothing; leave "
                f"{role}_file out, and it is split off from the training data."
            )
    return {role: partial(_open_one_file, path) for role, path in paths.items()}


def _open_one_file(path: Path) -> list[RowSource]:
    return [open_file(path)]


def openers_of_splits(
    name: str,
    splits: Mapping[str, SplitOpener],
    split_names: Mapping[str, str | None],
    answer_columns: Sequence[str],
    notes: list[str],
) -> dict[str, SplitOpener]:
    """The splits of a dataset by role.

    A validation or test split without rows or labels is not used. If the test split is not used, the validation split
    takes its role.

    Args:
        name: the dataset, for messages.
        splits: all splits by name.
        split_names: the split for a role, where its name is not in `SPLIT_NAMES`; None for no split.
        answer_columns: the columns with what is predicted, of which the dataset may have one.
        notes: receives notes on splits that are not used.

    Raises:
        InputError: if a split does not exist or the training split is not clear.
    """
    chosen = _choose_splits(name, list(splits), split_names)
    for role in ("test", "validation"):
        if role in chosen and (reason := _why_unused(splits[chosen[role]](), answer_columns)):
            split = chosen.pop(role)
            notes.append(f"{reason.format(split=f'{name}[{split}]')}: it is not used.")
            if role == "test" and "validation" in chosen:
                chosen["test"] = chosen.pop("validation")
                notes.append(f"{name}[{chosen['test']}] is the test data.")
    return {role: splits[split] for role, split in chosen.items()}


def _choose_splits(name: str, available: Sequence[str], split_names: Mapping[str, str | None]) -> dict[str, str]:
    """The name of the split for each role."""
    chosen: dict[str, str] = {}
    for role, usual_names in SPLIT_NAMES.items():
        wanted = (
            split_names[role] if role in split_names else next((one for one in usual_names if one in available), None)
        )
        if wanted is None:
            continue
        if wanted not in available:
            raise InputError(
                f"The dataset {name!r} has no split {wanted!r}; it has {', '.join(available)}. Choose one of these "
                f"for {role!r} (split_names)."
            )
        chosen[role] = wanted
    if "train" not in chosen:
        if len(available) != 1:
            raise InputError(
                f"The dataset {name!r} has no split 'train'; it has {', '.join(available)}. Name the one to train on "
                "(split_names)."
            )
        chosen["train"] = available[0]
    return chosen


def _why_unused(files: Sequence[RowSource], answer_columns: Sequence[str]) -> str | None:
    """Why a split cannot be used: it has no rows, or its labels are withheld, as in the test data of benchmarks."""
    is_empty = True
    for file in files:
        file.selected = answer_columns
        for _, values in file.rows:
            is_empty = False
            column = next((one for one in answer_columns if one in values), None)
            if column is None or not _is_withheld(values[column], file.class_names.get(column)):
                return None
    if is_empty:
        return "{split} has no rows" if all(file.columns and not file.errors.count for file in files) else None
    return "The labels of {split} are withheld"


def _is_withheld(value: Any, class_names: Sequence[str] | None) -> bool:
    """Whether a label is missing, or -1, as benchmarks write it for withheld classes and numbers."""
    return is_missing(value, class_names) or (isinstance(value, int | float) and value == -1)
