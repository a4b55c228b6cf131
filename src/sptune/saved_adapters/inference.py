"""Using adapters that runs wrote: evaluate, predict, inspect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sptune.errors import InputError
from sptune.runs import output_folder as outputs
from sptune.runs.predictions import check_text_columns, prediction_rows
from sptune.runs.progress import Monitor
from sptune.runs.task_kinds import AnyTask, Columns, check_max_new_tokens, read_examples
from sptune.saved_adapters import adapter_files
from sptune.saved_adapters.adapter_folder import AdapterFolder, named_folders, read_all
from sptune.saved_adapters.adapter_pool import AdapterPool
from sptune.saved_adapters.text_writer import load_writer
from sptune.tasks import read_named
from sptune.tasks.generation_task import GenerationTask
from sptune.tasks.metrics import score_metrics
from sptune.tasks.targets import targets
from sptune.whole_files import expanded


def evaluate(
    adapter: str | Path,
    test_file: str | Path,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    messages_column: str | None = None,
    max_new_tokens: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    monitor: Monitor | None = None,
) -> dict[str, Any]:
    """Score an adapter on labeled data, or on prompts with completions.

    It computes in the dtype of the backbone: after a run with `bf16` the scores can differ a little from metrics.json.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote.
        test_file: .jsonl, .csv, .tsv or .parquet.
        text_columns: columns with the text, where they are not called as in training.
        label_column: column with the label, likewise.
        prompt_column: column with the prompt, likewise.
        completion_column: column with the completion, likewise.
        messages_column: column with lists of messages, likewise.
        max_new_tokens: maximum length of a generated text in tokens. Default: as in training.
        output: where to write the predictions, as JSON Lines; None not to write them.
        overwrite: the file may exist already.
        monitor: receives progress events.

    Returns:
        The task's metrics, and the number of examples.

    Raises:
        InputError: the adapter or the data cannot be right, or `output` must not be written.
    """
    output = None if output is None else expanded(output)
    if output is not None:
        outputs.check_file(output, overwrite=overwrite, read=expanded(test_file))
    columns = Columns(text_columns, label_column, prompt_column, completion_column, messages_column)
    metrics, rows = _evaluate(AdapterFolder.read(adapter), columns, test_file, max_new_tokens, monitor or Monitor())
    if output is not None:
        outputs.write_json_lines(output, rows)
    return metrics


def _evaluate(
    saved: AdapterFolder, columns: Columns, test_file: str | Path, max_new_tokens: int | None, monitor: Monitor
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics, and a prediction for each example."""
    task = columns.of(saved.task)
    check_max_new_tokens(task, max_new_tokens)
    if not isinstance(task, GenerationTask):
        check_text_columns(task, answered=True)
    examples = read_examples(task, test_file, answered=True)
    if isinstance(task, GenerationTask):
        return load_writer(saved, task, examples, max_new_tokens, monitor).evaluate(examples)
    pool = _load({"adapter": saved}, monitor)
    scores = np.stack(pool.class_scores([("adapter", example) for example in examples], monitor))
    metrics = {**score_metrics(task, scores, targets(task, examples) or []), "examples": len(examples)}
    return metrics, list(prediction_rows(task, examples, scores))


def predict(
    adapter: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    input: str | Path,
    output: str | Path | None = None,
    *,
    adapter_column: str | None = None,
    text_columns: Sequence[str] | None = None,
    prompt_column: str | None = None,
    messages_column: str | None = None,
    max_new_tokens: int | None = None,
    overwrite: bool = False,
    monitor: Monitor | None = None,
) -> list[dict[str, Any]]:
    """Predict the class, the labels or the number of unlabeled texts, or write what follows prompts.

    Args:
        adapter: an adapter folder that `fit` or `train` wrote. With `adapter_column` several of one backbone: a mapping
            from names to folders, or what else `sptune.saved_adapters.adapter_folder.named_folders` takes.
        input: texts or prompts: .jsonl, .csv, .tsv or .parquet.
        output: where to write the predictions, as JSON Lines; None not to write them.
        adapter_column: the column that names the adapter of each row.
        text_columns: columns with the text, where they are not called as in training.
        prompt_column: column with the prompt, likewise.
        messages_column: column with lists of messages, likewise; a last turn of the assistant is written anew.
        max_new_tokens: maximum length of a generated text in tokens. Default: as in training.
        overwrite: `output` may exist already.
        monitor: receives progress events.

    Returns:
        One entry for each text, in the order of the file: its adapter if there is a column for it, its text columns,
        "prediction" and, unless that is a number, "scores"; of a model that writes "prompt" and "generated".

    Raises:
        InputError: an adapter or the data cannot be right, or `output` must not be written.
    """
    output = None if output is None else expanded(output)
    if output is not None:
        outputs.check_file(output, overwrite=overwrite, read=expanded(input))
    saved = read_all(named_folders(adapter))
    columns = Columns(text_columns, prompt_column=prompt_column, messages_column=messages_column)
    rows = _predict(saved, input, adapter_column, columns, max_new_tokens, monitor or Monitor())
    if output is not None:
        outputs.write_json_lines(output, rows)
    return rows


def inspect(adapter: str | Path) -> dict[str, Any]:
    """What an adapter is, without loading its backbone.

    Raises:
        InputError: not an SPT adapter.
    """
    folder = adapter_files.find_folder(adapter)
    config, sizes = adapter_files.read_config(folder), adapter_files.read_sizes(folder)
    generators = sum(size for key, size in sizes.items() if "spt_generator" in key)
    document = adapter_files.read_task_document(folder) if adapter_files.has_task(folder) else {}
    names = (
        "placement",
        "prompt_layers",
        "generator",
        "num_virtual_tokens",
        "bottleneck_dim",
        "residual",
        "projection",
        "task_type",
    )
    return {
        "adapter_dir": str(folder),
        "base_model": config.get("base_model_name_or_path"),
        **{name: config.get(name) for name in names},
        "placement": config.get("placement") or "prepend",  # a file from before there was another does not say it
        "parameters": {
            "total": sum(sizes.values()),
            "generators": generators,
            "others": sum(sizes.values()) - generators,
        },
        "adapter_bytes": outputs.weight_bytes(folder),
        "task": document.get("task"),
        "backbone": document.get("backbone"),
    }


def _predict(
    saved: Mapping[str, AdapterFolder],
    input: str | Path,
    adapter_column: str | None,
    columns: Columns,
    max_new_tokens: int | None,
    monitor: Monitor,
) -> list[dict[str, Any]]:
    """A prediction for each text, with the adapter's name if there is a column for it."""
    tasks = {name: columns.of(one.task) for name, one in saved.items()}
    for task in tasks.values():
        check_max_new_tokens(task, max_new_tokens)
        if not isinstance(task, GenerationTask):
            check_text_columns(task, answered=False)
    if adapter_column is not None:
        _check_adapter_column(adapter_column, tasks.values())
        examples = read_named(input, adapter_column, tasks)
    elif len(saved) > 1:
        raise InputError(
            f"Several adapters are given ({', '.join(saved)}), but no column says which row is for which; name it with "
            "--adapter-column (adapter_column=)."
        )
    else:
        ((name, task),) = tasks.items()
        examples = [(name, example) for example in read_examples(task, input, answered=False)]
        if isinstance(task, GenerationTask):
            prompts = [example for _, example in examples]
            return load_writer(saved[name], task, prompts, max_new_tokens, monitor).predict(prompts)
    rows = _load(saved, monitor).predict_examples(examples, [max_new_tokens] * len(examples), monitor)
    if adapter_column is not None:
        rows = [{adapter_column: name, **row} for (name, _), row in zip(examples, rows, strict=True)]
    return rows


def _check_adapter_column(column: str, tasks: Iterable[AnyTask]) -> None:
    """Refuse a column that a row of the output has for something else.

    Raises:
        InputError: which.
    """
    written: set[str] = set()
    for task in tasks:
        written |= {"prompt", "generated"} if isinstance(task, GenerationTask) else {"prediction", "scores"}
    if column in written:
        raise InputError(
            f"adapter_column={column!r}: the output has a field of this name, which would replace the adapter's name; "
            "rename the column in the file."
        )


def _load(saved: Mapping[str, AdapterFolder], monitor: Monitor) -> AdapterPool:
    what = "the adapter" if len(saved) == 1 else f"{len(saved)} adapters"
    monitor.stage(f"Loading {what} and the backbone")
    return AdapterPool({name: one.path for name, one in saved.items()})
