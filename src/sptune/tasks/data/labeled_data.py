"""Loads checked examples: the three splits (`load_splits`) or one file (the others)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.renamed import renamed_argument
from sptune.tasks.data.class_checks import (
    LabelCounts,
    check_class_names,
    check_classes,
    check_numeric_labels,
    check_spelling,
    note_rare_classes,
    order_classes,
)
from sptune.tasks.data.column_checks import check_column_names
from sptune.tasks.data.error_report import raise_errors
from sptune.tasks.data.file_reader import open_file
from sptune.tasks.data.label_set_checks import (
    LabelSet,
    check_label_sets,
    check_labels,
)
from sptune.tasks.data.number_checks import check_numbers, check_range
from sptune.tasks.data.row_checks import check_rows
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.data.split_roles import open_roles
from sptune.tasks.splits import Example, Splits, divide, with_rarest_labels
from sptune.tasks.stored_examples import StoredExamples
from sptune.tasks.task import CLASSIFIER, DEFAULT_SEPARATOR, KINDS, MULTI_LABEL, REGRESSION

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text",)
LABEL_COLUMN = "label"


@renamed_argument("data", "dataset")
@renamed_argument("data_config", "dataset_config")
def load_splits(
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split_names: Mapping[str, str | None] | None = None,
    text_columns: Sequence[str] = TEXT_COLUMNS,
    label_column: str = LABEL_COLUMN,
    labels: Sequence[str] | None = None,
    kind: str = CLASSIFIER,
    label_separator: str | None = None,
    few_shot: int | None = None,
    seed: int = 0,
) -> tuple[tuple[str, ...], Splits]:
    """Load labeled data from files or from a Hugging Face dataset, check them and split them.

    Args:
        train_file: a .jsonl, .csv, .tsv or .parquet file.
        validation_file: by default split off from the training data, as is `test_file`.
        test_file: as `validation_file`.
        dataset: instead of files, a Hugging Face dataset; see `sptune.tasks.data.hub_dataset.open_dataset`.
        dataset_config: its configuration.
        split_names: the splits to use as "train", "validation" and "test"; None for one to split off from "train".
        text_columns: the column with the text; two columns for text pairs.
        label_column: the column with the class, several labels or the number.
        labels: by default those of the training data, in declared, numerical or alphabetical order.
        kind: "classifier" for a class, "multi_label" for a list or text of labels, or "regression" for a number.
        label_separator: what stands between several labels in a text. Default: "|".
        few_shot: the number of training examples in all.
        seed: the seed of all random splits.

    Returns:
        The classes or labels in order, and the splits.

    Raises:
        InputError: all errors of the data in one message.
    """
    text_columns, check = check_column_names(text_columns, label_column), _check_of(kind, label_separator, labels)
    files, columns, notes = (train_file, validation_file, test_file), [*text_columns, label_column], list[str]()
    openers = open_roles(files, dataset, dataset_config, split_names or {}, columns, columns[-1:], notes)
    sources = {role: open_split() for role, open_split in openers.items()}
    classes, examples = check(sources, text_columns, label_column, notes=notes)
    return classes, _divide(examples, few_shot, seed, _name_of(sources["train"]), label_column, notes)


def _divide(
    examples: Mapping[str, StoredExamples[Example]],
    few_shot: int | None,
    seed: int,
    train_name: str,
    label_column: str,
    notes: list[str],
) -> Splits:
    """The three splits; see `divide`. Numbers of which equal ones are drawn for training are refused."""
    splits = divide(examples, few_shot_count=few_shot, seed=seed, source=train_name, notes=notes)
    if isinstance(splits.train[0].label, float):
        check_range(splits.train, train_name, label_column, drawn=True)
    return splits


def _check_of(kind: str, label_separator: str | None, labels: Sequence[str] | None) -> Any:
    """The function that checks the rows of all splits of a kind of task; of classes, those with these names.

    Raises:
        InputError: there is no such kind, or the names cannot be right.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not allowed; choose one of {', '.join(KINDS)}.")
    if kind == REGRESSION:
        return _check_numbers
    known = None if labels is None else check_class_names(labels)
    if kind == MULTI_LABEL:
        return partial(_check_label_sets, labels=known, separator=label_separator)
    return partial(_check_classes, labels=known)


def _check_classes(
    sources: Mapping[str, Sequence[RowSource]],
    text_columns: Sequence[str],
    label_column: str,
    labels: tuple[str, ...] | None,
    notes: list[str],
) -> tuple[tuple[str, ...], dict[str, StoredExamples[Example]]]:
    """Check the rows of all splits and the classes.

    Returns:
        The classes in order, and the examples by role.
    """
    train_name = _name_of(sources["train"])
    declared = sources["train"][0].class_names.get(label_column)
    are_classes_known = labels is not None or declared is not None
    train = _check_split(sources["train"], text_columns, label_column, labels, None)
    found = LabelCounts.of(train)
    if not are_classes_known:
        check_numeric_labels(found, train_name, label_column, notes)
    classes = labels or order_classes(found.counts, declared)
    examples = {"train": train}
    for role in ("validation", "test"):
        if role in sources:
            examples[role] = _check_split(
                sources[role], text_columns, label_column, classes or None, None if labels else train_name
            )
    _raise_errors_and_take_notes(sources, notes)
    check_classes(found, train_name, label_column, classes, notes)
    if not are_classes_known:
        check_spelling(found, train_name, label_column)
        notes.extend(note_rare_classes(found, train_name))
    return classes, examples


def _check_label_sets(
    sources: Mapping[str, Sequence[RowSource]],
    text_columns: Sequence[str],
    label_column: str,
    labels: tuple[str, ...] | None,
    notes: list[str],
    *,
    separator: str | None,
) -> tuple[tuple[str, ...], dict[str, StoredExamples[Example[LabelSet]]]]:
    """As `_check_classes`, where each example has any number of labels."""
    train_name = _name_of(sources["train"])
    declared = sources["train"][0].class_names.get(label_column)
    between = separator or DEFAULT_SEPARATOR

    def check(role: str, known: tuple[str, ...] | None, name: str | None) -> StoredExamples[Example[LabelSet]]:
        how: dict[str, Any] = {"separator": between, "known_labels": known, "train_name": name}
        checked = (check_label_sets(file, text_columns, label_column, **how) for file in sources[role])
        return StoredExamples.write(chain.from_iterable(checked))

    train = check("train", labels, None)
    found = LabelCounts.of(train)
    names = labels or order_classes(found.counts, declared)
    examples = {"train": StoredExamples.write(with_rarest_labels(train, found.counts))}
    for role in sources.keys() - {"train"}:
        examples[role] = check(role, names or None, None if labels else train_name)
    _raise_errors_and_take_notes(sources, notes)
    are_known = labels is not None or declared is not None
    check_labels(found, train_name, label_column, names, notes, separator=separator, are_known=are_known)
    return names, examples


def _check_numbers(
    sources: Mapping[str, Sequence[RowSource]],
    text_columns: Sequence[str],
    label_column: str,
    notes: list[str],
) -> tuple[tuple[()], dict[str, StoredExamples[Example[float]]]]:
    """As `_check_classes`, where each example has a number; there are no classes."""
    examples = {
        role: StoredExamples.write(
            chain.from_iterable(check_numbers(file, text_columns, label_column) for file in files)
        )
        for role, files in sources.items()
    }
    _raise_errors_and_take_notes(sources, notes)
    check_range(examples["train"], _name_of(sources["train"]), label_column)
    return (), examples


def _raise_errors_and_take_notes(sources: Mapping[str, Sequence[RowSource]], notes: list[str]) -> None:
    files = [file for split in sources.values() for file in split]
    raise_errors(file.errors for file in files)
    notes.extend(note for file in files for note in file.notes)


def _check_split(
    files: Sequence[RowSource],
    text_columns: Sequence[str],
    label_column: str,
    known_labels: tuple[str, ...] | None,
    train_name: str | None,
) -> StoredExamples[Example]:
    """The examples of all files of a split; see `check_rows`."""
    check = partial(check_rows, known_labels=known_labels, train_name=train_name)
    return StoredExamples.write(chain.from_iterable(check(file, text_columns, label_column) for file in files))


def _name_of(files: Sequence[RowSource]) -> str:
    return files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def read_labeled(
    path: str | Path,
    text_columns: Sequence[str] = TEXT_COLUMNS,
    label_column: str = LABEL_COLUMN,
    *,
    labels: Sequence[str] = (),
    kind: str = CLASSIFIER,
    label_separator: str | None = None,
) -> list[Example]:
    """Read the examples of one file with known classes or labels, or with numbers; see `load_splits`.

    Raises:
        InputError: all errors of the file in one message.
    """
    source = open_file(path)
    columns = check_column_names(text_columns, label_column)
    examples: Iterator[Example]
    if kind == REGRESSION:
        examples = check_numbers(source, columns, label_column)
    elif kind == MULTI_LABEL:
        between, known = label_separator or DEFAULT_SEPARATOR, check_class_names(labels)
        examples = check_label_sets(source, columns, label_column, separator=between, known_labels=known)
    else:
        examples = check_rows(source, columns, label_column, known_labels=check_class_names(labels))
    checked: list[Example] = list(examples)
    raise_errors_and_log_notes(source)
    return checked


def read_unlabeled(path: str | Path, text_columns: Sequence[str] = TEXT_COLUMNS) -> list[Example]:
    """Read the texts of one file without labels.

    Raises:
        InputError: all errors of the file in one message.
    """
    source = open_file(path)
    examples = list(check_rows(source, check_column_names(text_columns, None), None))
    raise_errors_and_log_notes(source)
    return examples


def raise_errors_and_log_notes(source: RowSource) -> None:
    """Raise the errors of a source; log what is unusual if there are none."""
    raise_errors([source.errors])
    for note in source.notes:
        logger.warning("%s", note)
