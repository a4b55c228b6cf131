"""Prints the progress of runs and studies on standard error, and their results on standard output.

Nothing here loads PyTorch; what needs sptune's own modules imports them when it is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sptune.cli.plain_text import escape

if TYPE_CHECKING:
    from sptune.compare import Comparison, Study
    from sptune.compare.run_spec import RunSpec
    from sptune.runs.run import Run
    from sptune.search import SearchResult

# In a file or a pipe tables are as wide as they need to be.
LONG_LINE = 1000
# How often a log says which step a stage is at.
SECONDS_PER_LINE = 30

results = Console(soft_wrap=True, highlight=False)
if not results.is_terminal:
    results.width = LONG_LINE
messages = Console(stderr=True, highlight=False)


class Stages:
    """Shows the stages of a run on standard error: bars on a terminal, elsewhere lines with the stage or step.

    It is a `sptune.runs.progress.Monitor`; not by inheritance, because importing that takes seconds.
    """

    def __init__(self) -> None:
        self.title = "starting"
        self.done = 0
        self.steps: int | None = None
        self.is_main = os.environ.get("RANK", "0") == "0"
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=messages,
        )
        self._task: Any = None
        self._next_line = 0.0

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            self._close()
        self._progress.stop()

    def stage(self, title: str, steps: int | None = None) -> None:
        """A stage begins."""
        self._close()
        self.title, self.steps, self.done = title, steps, 0
        self._next_line = time.monotonic() + SECONDS_PER_LINE
        if not self.is_main:
            return
        if messages.is_terminal:
            self._progress.start()
            self._task = self._progress.add_task(escape(title), total=steps)
        else:
            messages.print(escape(title + (f" ({steps} steps)" if steps else "")), soft_wrap=True)

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        if self._task is not None:
            self._progress.advance(self._task)
        elif self.is_main and self.steps and time.monotonic() >= self._next_line:
            messages.print(escape(self.where()), soft_wrap=True)
            self._next_line = time.monotonic() + SECONDS_PER_LINE

    def resumed(self, done: int) -> None:
        """The stage goes on after steps that an interrupted run did."""
        self.done += done
        if self._task is not None:
            self._progress.advance(self._task, done)
        self.note(f"Continuing after step {done} of {self.steps}.")

    def note(self, text: str) -> None:
        """Something to read."""
        if self.is_main:
            from sptune.cli.option_flags import in_flags

            messages.print(f"[yellow]Note:[/] {escape(in_flags(text))}", soft_wrap=True)

    def where(self) -> str:
        """Where the run stands, in words."""
        return self.title + (f", step {self.done} of {self.steps}" if self.steps else "")

    def _close(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=max(self.done, 1), completed=max(self.done, 1))
            self._task = None


class StudyProgress:
    """Shows a study on standard error: a live table on a terminal, a line a run elsewhere.

    It is a `sptune.compare.workers.Watcher`; not by inheritance, because importing that takes seconds.
    """

    def __init__(self, study: Study, only: Sequence[str] | None, stages: Stages) -> None:
        self.study = study
        self.only = only
        self.stages = stages
        self.rows: list[dict[str, Any]] | None = None
        self.under_way: dict[str, Any] = {}
        self._live = Live(console=messages, auto_refresh=False, transient=True)

    def __enter__(self) -> StudyProgress:
        if messages.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def noted(self, task: str, note: str) -> None:
        """Something is to be said about a task's data."""
        self.stages.note(f"{task}: {note}")

    def began(self, spec: RunSpec) -> None:
        """This process began a run."""
        self.under_way[spec.id] = spec
        self.stages.title = _spec_title(spec)
        self._show()

    def changed(self, rows: list[dict[str, Any]]) -> None:
        """These rows are there now."""
        before = None if self.rows is None else {row["run"] for row in self.rows}
        if before is None and not self.study.pending(rows, self.only):
            of = f" of {', '.join(self.only)}" if self.only else ""
            messages.print(escape(f"All runs{of} have ended."), soft_wrap=True)
        self.rows = rows
        new = [row for row in rows if before is not None and row["run"] not in before]
        for row in new:
            self.under_way.pop(row["run"], None)
        if not messages.is_terminal:
            specs = (*self.study.tuning_runs(), *self.study.final_runs({}))
            everything = sum(spec.name in (self.only or self.study.methods) for spec in specs)
            ended = len(self.study.own(rows, self.only)) if new else 0
            for row in new:
                title, outcome = _run_title(row), _run_outcome(row)
                messages.print(escape(f"{title}: {outcome}; {ended} of {everything} runs ended"), soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if messages.is_terminal:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        """Each method's mean so far by task, and how many of its runs are done."""
        from sptune.compare.summary import summarize

        rows = self.rows or []
        known = {row["run"] for row in rows}
        lines = summarize(self.study, rows)
        tuning = {name: [spec for spec in self.study.tuning_runs() if spec.name == name] for name in self.study.methods}
        table = Table("method", "rates tried", *map(escape, self.study.tasks), "runs done", "failed", box=None)
        for line in lines:
            tried = tuning[line.method]
            table.add_row(
                escape(line.method),
                f"{sum(spec.id in known for spec in tried)}/{len(tried)}" if tried else "",
                *(f"{line.scores[task]:.4f}" if task in line.scores else "" for task in self.study.tasks),
                f"{line.runs}/{len(self.study.tasks) * len(self.study.seeds)}",
                str(line.failed or ""),
            )
        if self.under_way:
            *others, last = self.under_way.values()
            more = f", and {len(others)} more" if others else ""
            table.caption = escape(f"now: {_spec_title(last)}{more}")
        return table


def _spec_title(spec: RunSpec) -> str:
    return f"{spec.name} on {spec.task}, seed {spec.seed}, rate {spec.learning_rate:g}"


def _run_title(row: dict[str, Any]) -> str:
    kind = "rate" if row["tuning"] else f"seed {row['seed']}, rate"
    return f"{row['method']} on {row['task']}, {kind} {row['learning_rate']:g}"


def _run_outcome(row: dict[str, Any]) -> str:
    if row["state"] != "done":
        return f"{row['state']} ({row['error']})"
    split = "validation" if row["tuning"] else "test"
    return f"{split} {row[split]['score']:.4f}, {row['seconds']['total']:.0f} s"


def print_study(study: Study, only: list[str] | None, as_json: bool) -> None:
    """What a study would do; nothing of it is loaded."""
    methods = {name: method for name, method in study.methods.items() if only is None or name in only}
    specs = [spec for spec in (*study.tuning_runs(), *study.final_runs({})) if spec.name in methods]
    if as_json:
        for spec in specs:
            print_json(
                {
                    "task": spec.task,
                    "method": spec.name,
                    "tuning": spec.tuning,
                    "settings": {"kind": spec.method.kind, **spec.method.settings},
                    "options": spec.lasting_options(),
                }
            )
        return
    table = Table("method", "kind", "learning rates", "settings", box=None)
    for name, method in methods.items():
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        settings = ", ".join(f"{key}={value}" for key, value in method.settings.items())
        table.add_row(*map(escape, (name, method.kind, rates, settings)))
    results.print(table)
    results.print(f"Tasks: {escape(', '.join(study.tasks))}; seeds: {', '.join(map(str, study.seeds))}")
    tuning = sum(spec.tuning for spec in specs)
    results.print(f"Runs: {tuning} to choose learning rates, {len(specs) - tuning} to report")


def print_comparison(comparison: Comparison) -> None:
    """Scores and costs of all methods, and what failed."""
    from sptune.compare.tables import cost_table, score_table

    study, lines = comparison.study, comparison.summary
    for shown in (score_table(study, lines, comparison.rows), cost_table(study, lines)):
        table = Table(*map(escape, shown.columns), box=None)
        for cells in shown.rows:
            table.add_row(*map(escape, cells), style="bold" if cells[0] == study.against else "")
        table.columns[0].overflow = "fold"
        results.print(table)
        for note in shown.notes:
            results.print(escape(note))
        results.print()
    for reason in dict.fromkeys(row["error"] for row in comparison.rows if row["state"] == "skipped"):
        messages.print(f"[yellow]Skipped:[/] {escape(reason)}", soft_wrap=True)
    failed = [row for row in comparison.rows if row["state"] == "failed"]
    for row in failed[:5]:
        messages.print(f"[yellow]Failed:[/] {escape(_run_title(row))}: {escape(row['error'])}", soft_wrap=True)
    if failed:
        messages.print(f"{len(failed)} failed runs in all; --retry-failed does them again.")
    if comparison.others:
        results.print(
            f"Other runs in the folder, which are not of this study (other methods, tasks, seeds, learning rates or "
            f"settings): {comparison.others}; a study that names them shows them."
        )
    results.print(f"Runs, summary and pictures: {escape(str(comparison.output_dir))}")


def print_json(value: Any) -> None:
    """One line of JSON; it is all ASCII where standard output cannot write its characters."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


def print_run(run: Run, as_json: bool) -> None:
    """What a run found and reached, and where it lies."""
    if as_json:
        folders = {"output_dir": str(run.output_dir)}
        if run.metrics:
            folders["adapter_dir"] = str(run.adapter_dir)
        print_json({**folders, "prompt_layers": run.prompt_layers, **run.metrics})
        return
    search_file = run.output_dir / "search.json"
    if search_file.exists():
        from sptune.cli.option_flags import in_flags
        from sptune.search import SearchResult

        found = SearchResult.load(search_file)
        for remark in found.remarks:
            results.print(escape(in_flags(remark)))
        if found.history:
            _print_layers(found)
    results.print(f"Prompt layers: [bold]{', '.join(map(str, run.prompt_layers))}[/]")
    if run.metrics:
        _print_scores(run.metrics)
        parameters = run.metrics["parameters"]
        results.print(
            f"Trained parameters: {parameters['trainable']:,} ({parameters['generators']:,} in prompt generators), "
            f"of {parameters['total']:,} in all; adapter: {run.metrics['adapter_bytes']:,} bytes; "
            f"time: {run.metrics['seconds']['total']:.0f} s"
            + (f", {run.metrics['search_share']:.0%} of it for the search" if run.metrics.get("search_share") else "")
        )
        results.print(f"Adapter: {escape(str(run.adapter_dir))}")
        results.print(f"Report: {escape(str(run.output_dir / 'report.html'))}")
    results.print(f"Everything else: {escape(str(run.output_dir))}")


def _print_layers(found: SearchResult) -> None:
    """The candidates by falling score, with bars where scores are gates."""
    table = Table("layer", "score", "", title=f"Score: {found.score_name}", box=None, title_justify="left")
    for layer, score in sorted(
        zip(found.candidate_layers, found.scores, strict=True), key=lambda one: one[1], reverse=True
    ):
        chosen = layer in found.prompt_layers
        bar = "█" * max(1, round(40 * score)) if found.search.criterion == "gates" else ""
        style = "bold green" if chosen else "dim"
        table.add_row(f"{layer}", f"{score:.3f}", f"{bar} {'chosen' if chosen else ''}", style=style)
    results.print(table)


def _print_scores(metrics: dict[str, Any]) -> None:
    measured = metrics["test"]
    if "perplexity" in measured:
        _print_table(metrics, ["loss", "perplexity"])
        results.print(
            f"Test examples: {measured['examples']:,}; of {measured['generated_examples']:,} generated texts "
            f"{measured['exact_match']:.1%} match exactly, ROUGE-L {measured['rouge_l']:.3f}"
        )
        return
    if "accuracy" not in measured:
        _print_labels_or_numbers(metrics, measured)
        return
    _print_table(metrics, [name for name in ("accuracy", "f1", "mean") if name in measured])
    from scipy import stats

    accuracy, count = measured["accuracy"], measured["examples"]
    # Wilson's, which does not shrink to a point where all of a few examples are right.
    interval = stats.binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
    results.print(
        f"Test examples: {count:,} (95 % interval of the accuracy: {interval.low:.4f} to {interval.high:.4f})"
    )


def _print_labels_or_numbers(metrics: dict[str, Any], measured: dict[str, Any]) -> None:
    """The scores of several labels, or of a regression."""
    examples = f"Test examples: {measured['examples']:,}"
    if "labels" in measured:
        _print_table(metrics, ["micro_f1", "macro_f1", "subset_accuracy"])
        print_labels(measured["labels"])
        results.print(f"{examples}; Hamming loss {measured['hamming_loss']:.4f}")
        return
    _print_table(metrics, ["r2", "rmse"])
    others = ", ".join(f"{name} {written(measured[name])}" for name in ("mae", "pearson", "spearman"))
    results.print(f"{examples}; {others}")


def print_labels(labels: dict[str, dict[str, Any]]) -> None:
    """The metrics of each of several labels."""
    names = list(next(iter(labels.values())))
    table = Table("label", *(name.replace("_", " ") for name in names), box=None)
    for label, values in labels.items():
        table.add_row(escape(label), *(written(values[name]) for name in names))
    results.print(table)


def written(value: float | None, form: str = ".4f") -> str:
    """A metric as text, a number of examples as it is, and a dash for what is not defined."""
    return "–" if value is None else f"{value:{form}}" if isinstance(value, float) else f"{value:,}"


def _print_table(metrics: dict[str, Any], names: list[str]) -> None:
    """Metrics on validation and test data, next to those of the linear probe or of zero-shot."""
    table = Table("", *(f"{split} {name}" for split in ("validation", "test") for name in names), box=None)
    rows, difference = [("prompts", metrics)], ""
    if "baseline" in metrics:
        rows.insert(0, (metrics["baseline"]["kind"], metrics["baseline"]))
        # Loss and perplexity are the better the lower they are.
        difference = "reduction" if "perplexity" in names else "gain"
        rows.append((difference, metrics["gain"]))
    for title, values in rows:
        sign = "+" if title == difference else ""
        table.add_row(
            title,
            *(written(values[split].get(name), f"{sign}.4f") for split in ("validation", "test") for name in names),
            style="bold" if title == "prompts" else "",
        )
    results.print(table)


def shown(value: Any) -> str:
    """A value of a table, for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
