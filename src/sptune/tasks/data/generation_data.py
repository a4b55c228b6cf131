"""Loads checked prompts and completions: the three splits (`load_prompt_splits`) or one file (`read_prompts`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from sptune.tasks.data.error_report import raise_errors
from sptune.tasks.data.file_reader import open_file
from sptune.tasks.data.generation_checks import check_prompts
from sptune.tasks.data.hub_dataset import SplitOpener
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.data.split_roles import open_roles
from sptune.tasks.generation_task import (
    COMPLETION_FIELD,
    MESSAGES_FIELD,
    PROMPT_FIELD,
    GenerationExample,
    GenerationTask,
)
from sptune.tasks.splits import Splits, divide
from sptune.tasks.stored_examples import StoredExamples

logger = logging.getLogger(__name__)


def load_prompt_splits(
    name: str,
    *,
    train_file: str | Path | None = None,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    messages_column: str | None = None,
    few_shot: int | None = None,
    seed: int = 0,
) -> tuple[GenerationTask, Splits[GenerationExample]]:
    """Load prompts and completions, or conversations, check them and split them.

    Args:
        name: of the task.
        train_file: a .jsonl, .csv, .tsv or .parquet file.
        validation_file: split off from the training data by default.
        test_file: split off from the training data by default.
        dataset: as in `load_splits`.
        dataset_config: as in `load_splits`.
        prompt_column: the column with the prompt. Default: "prompt".
        completion_column: the column with the completion. Default: "completion".
        messages_column: the column with lists of messages, instead. Default: "messages", if there are no prompts.
        few_shot: the number of training examples in all.
        seed: the seed of all random splits.

    Returns:
        The task, which names the columns, and the splits.

    Raises:
        InputError: all errors of the data in one message.
    """
    names = (prompt_column or PROMPT_FIELD, completion_column or COMPLETION_FIELD, messages_column or MESSAGES_FIELD)
    files, notes = (train_file, validation_file, test_file), list[str]()
    openers = open_roles(files, dataset, dataset_config, {}, names, names[1:], notes)
    unnamed = prompt_column is None and completion_column is None
    are_messages = messages_column is not None or (unnamed and _holds_messages(openers["train"]))
    task = GenerationTask.of_messages(name, names[2]) if are_messages else GenerationTask(name, *names[:2])
    sources = {role: open_split() for role, open_split in openers.items()}
    examples = _check_sources(sources, task, notes)
    return task, divide(examples, few_shot_count=few_shot, seed=seed, source=sources["train"][0].name, notes=notes)


def _check_sources(
    sources: Mapping[str, Sequence[RowSource]], task: GenerationTask, notes: list[str]
) -> dict[str, StoredExamples[GenerationExample]]:
    """The examples by role; `notes` receives what is unusual."""
    examples = {
        role: StoredExamples.write(chain.from_iterable(check_prompts(file, task, answered=True) for file in files))
        for role, files in sources.items()
    }
    every = [file for files in sources.values() for file in files]
    raise_errors(file.errors for file in every)
    notes.extend(note for file in every for note in file.notes)
    return examples


def read_prompts(path: str | Path, task: GenerationTask, *, answered: bool = True) -> list[GenerationExample]:
    """Read the prompts of one file.

    Args:
        path: a .jsonl, .csv, .tsv or .parquet file.
        task: names the columns.
        answered: whether completions are read, too.

    Raises:
        InputError: all errors of the file in one message.
    """
    source = open_file(path)
    examples = list(check_prompts(source, task, answered=answered))
    raise_errors([source.errors])
    for note in source.notes:
        logger.warning("%s", note)
    return examples


def _holds_messages(open_split: SplitOpener) -> bool:
    """Whether the first row has messages and no prompt."""
    source = open_split()[0]
    columns = source.columns or list(next(iter(source.rows), (0, {}))[1])
    return MESSAGES_FIELD in columns and PROMPT_FIELD not in columns
