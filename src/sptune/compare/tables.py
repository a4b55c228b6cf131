"""The tables of a comparison as text, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# With fewer, the interval of a comparison on one task is too wide to tell much.
FEW_SEEDS = 5


@dataclass(frozen=True)
class TextTable:
    """A table of text, one row a method.

    Attributes:
        columns: their titles; the first names the method.
        rows: a cell for each column.
        notes: what to say below it.
    """

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def to_markdown(self) -> str:
        """The table and its notes in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return "\n".join([table, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


def score_table(study: Any, lines: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """Scores by task and how much better than the reference each method is.

    Args:
        study: the study.
        lines: its summary; methods without a run are left out.
        rows: its runs.
    """
    tasks = list(study.tasks)
    several = len(tasks) > 1
    means, seeds = (["mean"], ["on other seeds"]) if several else ([], [])
    columns = ["method", *tasks, *means, "sd", f"minus {study.against} (95 % interval)", *seeds, "runs"]
    cells = []
    for line in _begun(lines):
        scores = [line.scores.get(task) for task in tasks] + [line.mean] * len(means)
        cells.append(
            [
                line.method,
                *(_number(score, ".4f") for score in scores),
                _number(line.deviation, ".4f"),
                f"{_number(line.difference, '+.4f')} {_interval(line.low, line.high)}".strip(),
                *([_interval(line.low_on_seeds, line.high_on_seeds)] if several else []),
                f"{line.runs}" + (f", {line.failed} failed" if line.failed else ""),
            ]
        )
    return TextTable(columns, cells, _score_notes(study, lines, rows))


def _score_notes(study: Any, lines: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the scores must know: sizes of the test data, runs that are missing or that differ."""
    tasks = list(study.tasks)
    tests = [f"{task} {size}" for task in tasks if (size := _test_examples(lines, task))]
    notes = [f"Test examples: {', '.join(tests)}."] if tests else []
    if not any(line.runs for line in lines if line.method == study.against):
        notes.append(f"No differences: {study.against} has no results. A study file may name another method (against).")
    wanted = {task for line in lines if line.method == study.against for task in line.scores}
    scored = {task for line in lines for task in line.scores}
    if wanted and scored - wanted:
        notes.append(
            f"Means, sd and costs are over the tasks that {study.against} has done: "
            f"{', '.join(task for task in tasks if task in wanted)}. It lacks "
            f"{', '.join(task for task in tasks if task in scored - wanted)}."
        )
    partial = [line.method for line in lines if line.scores and wanted - set(line.scores)]
    if partial:
        notes.append(
            f"Not on all tasks of {study.against}: {', '.join(partial)}. Their differences and costs are over the "
            "tasks that they share with it, and do not compare with those of other methods."
        )
    failed = dict.fromkeys(f"{one.name} on {one.task} {one.learning_rate:g}" for one in study.failed_tuning_runs(rows))
    if failed:
        notes.append(
            f"Learning rates were chosen without tuning runs that failed: {', '.join(failed)}. A rate with a failed "
            "run comes after all with fewer; --retry-failed does these runs again."
        )
    if len(tasks) == 1 and len(study.seeds) < FEW_SEEDS:
        notes.append(f"An interval needs two seeds at least, and says little below {FEW_SEEDS}.")
    if len({row["bf16"] for row in rows if row["state"] == "done" and not row["tuning"] and "bf16" in row}) > 1:
        notes.append("Some runs were computed in bfloat16 (autocast) and some not; runs.jsonl says which (bf16).")
    versions = sorted({row["versions"]["sptune"] for row in rows})
    if len(versions) > 1:
        notes.append(
            f"Runs were made by several versions of sptune ({', '.join(versions)}), which may choose otherwise what "
            "the study leaves open; runs.jsonl says which."
        )
    return notes


def cost_table(study: Any, lines: Sequence[Any]) -> TextTable:
    """Parameters, time, memory and size of each method, and the learning rates that were chosen.

    Args:
        study: the study.
        lines: its summary; methods without a run are left out.
    """
    relative = f"seconds / {study.against}"
    columns = ["method", "parameters", "s/step", "seconds", relative, "memory, MB", "saved, kB", "rates"]
    begun = _begun(lines)
    rows = [
        [
            line.method,
            _number(line.parameters, ",.0f"),
            _number(line.step_seconds, ".3f"),
            _number(line.seconds, ".1f"),
            _number(line.speed, ".2f"),
            _number(line.memory and line.memory / 1e6, ",.0f"),
            _number(line.adapter_bytes / 1e3, ",.0f"),
            ", ".join(f"{rate:g}" for rate in dict.fromkeys(line.rates.values()))
            if study.methods[line.method].kind != "zero-shot"
            else "",
        ]
        for line in begun
    ]
    machines = dict.fromkeys(line.machine for line in begun if line.machine)
    notes = [f"Times and memory: {one}; they are comparable only if nothing else ran there." for one in machines]
    elsewhere = [line.method for line in begun if line.runs and math.isnan(line.seconds)]
    if elsewhere:
        notes.append(
            f"No times of {', '.join(elsewhere)}: not all tasks were done on the processor, with the threads and in "
            f"the dtype of most runs of {study.against}."
        )
    outermost = [f"{line.method} ({', '.join(line.outermost)})" for line in begun if line.outermost]
    if outermost:
        notes.append(
            "Best at the lowest or highest learning rate that was tried, so another may be better (give more as "
            f"learning_rates in a study file, such as study.yaml in this folder): {'; '.join(outermost)}."
        )
    return TextTable(columns, rows, notes)


def _test_examples(lines: Sequence[Any], task: str) -> str:
    """How many examples the scores of a task are of, which may vary a little between seeds."""
    counts = [count for line in lines for count in line.examples.get(task, ())]
    return " to ".join(f"{count:,}" for count in dict.fromkeys((min(counts), max(counts)))) if counts else ""


def _begun(lines: Sequence[Any]) -> list[Any]:
    return [line for line in lines if line.runs or line.failed]


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:+.4f}, {high:+.4f}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)
