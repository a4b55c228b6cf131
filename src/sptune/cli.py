"""The command line: it parses options and prints results. What it runs is in pipeline.py, loaded only when needed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sptune.compare.methods import DEFAULT_METHODS
from sptune.errors import InputError, SptuneError
from sptune.options import ORIGIN, SHARED_OPTIONS, RunOptions
from sptune.outputs import CONFIG_FILE, read_config

if TYPE_CHECKING:
    from sptune.compare import Comparison, Study
    from sptune.compare.study import RunSpec
    from sptune.pipeline import Run
    from sptune.search import SearchResult

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
# With fewer, the interval of a comparison on one task is too wide to tell much.
FEW_SEEDS = 5

app = typer.Typer(
    help="Learn at which layers to prompt a frozen transformer, and train prompts at only those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

results = Console(soft_wrap=True, highlight=False)
messages = Console(stderr=True, highlight=False)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for machines.")]
AdapterOption = Annotated[Path, typer.Option("--adapter", help="Adapter folder that a run wrote.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sptune {importlib.metadata.version('sptune')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command; Typer calls this before any command runs."""


class _Stages:
    """Shows the stages of a run on standard error: bars on a terminal, a line a stage elsewhere.

    It is a `sptune.progress.Monitor`; not by inheritance, because importing that takes seconds.
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

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            self._close()
        self._progress.stop()

    def stage(self, title: str, steps: int | None = None) -> None:
        """A stage begins."""
        self._close()
        self.title, self.steps, self.done = title, steps, 0
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

    def note(self, text: str) -> None:
        """Something to read."""
        if self.is_main:
            messages.print(f"[yellow]Note:[/] {escape(text)}", soft_wrap=True)

    def where(self) -> str:
        """Where the run stands, in words."""
        return self.title + (f", step {self.done} of {self.steps}" if self.steps else "")

    def _close(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=max(self.done, 1), completed=max(self.done, 1))
            self._task = None


@contextlib.contextmanager
def _running(resume: str | None = None) -> Iterator[_Stages]:
    """Sets up a command that loads models, and turns errors into messages and exit codes.

    Args:
        resume: how to continue the run if it is interrupted.
    """
    stages = _Stages()
    try:
        with stages:
            _quiet_libraries()
            yield stages
    except KeyboardInterrupt:
        messages.print(f"[bold yellow]Interrupted[/] ({escape(stages.where())}). Nothing was left half-written.")
        if resume:
            messages.print(f"Continue with: {escape(resume)}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Turns sptune's errors into a message and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except SptuneError as error:
            messages.print(f"[bold red]Error:[/] {escape(_in_flags(str(error)))}", soft_wrap=True)
            raise typer.Exit(WRONG_INPUT if isinstance(error, InputError) else FAILED) from None

    return wrapped


_FLAGS = {
    field.name: "--" + (field.metadata["flag"] or field.name.replace("_", "-"))
    for field in dataclasses.fields(RunOptions)
}
# What stands in quotation marks is the user's own and stays.
_OPTION = re.compile(rf"(?<!\w)'[^']*'|(?<!\w)\"[^\"]*\"|(?<![\w./-])({'|'.join(_FLAGS)})(=(?=\S)|(?![\w=./-]))")


def _in_flags(message: str) -> str:
    """A message that speaks of options by their names in Python, in the words of the command line."""

    def flag(found: re.Match[str]) -> str:
        name, sign = found.groups()
        if name is None:
            return found[0]
        # Without a value, a name such as "data" is more likely just a word.
        return f"{_FLAGS[name]} " if sign else _FLAGS[name] if "_" in name else name

    return _OPTION.sub(flag, message.removeprefix(f"{ORIGIN}: "))


def _quiet_libraries() -> None:
    """Keeps other libraries' bars and advice off the screen; their errors still come through."""
    import datasets
    import transformers

    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=messages, show_path=False)]
    )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\b")


# -- fit, search, train -------------------------------------------------------------------------------------------


def _add_run_command(verb: str, text: str) -> None:
    """A command whose options are the fields of RunOptions that this verb takes."""

    def command(config: Path | None, as_json: bool, **given: Any) -> None:
        values = {name: _parse(name, value) for name, value in given.items() if value is not None}
        begun: dict[str, Any] = {}
        if config is not None:
            begun = read_config(config)
            RunOptions.from_mapping(begun, str(config))
        output = values.get("output_dir", begun.get("output_dir"))
        sptune = "sptune" if shutil.which("sptune") else f"{sys.executable} -m sptune"
        again = f"{sptune} {verb} --output {output} --resume" if output else None
        with _running(again) as stages:
            from sptune import pipeline

            run = getattr(pipeline, verb)(**{**begun, **values}, monitor=stages)
        if stages.is_main:
            _print_run(run, as_json)

    config = Annotated[
        Path | None,
        typer.Option(
            "--config", help=f"YAML file of options, such as a run's {CONFIG_FILE}.", rich_help_panel="Output"
        ),
    ]
    as_json = Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.", rich_help_panel="Output")
    ]
    parameters = [
        *_option_parameters(field for field in dataclasses.fields(RunOptions) if verb in field.metadata["verbs"]),
        _parameter("config", None, config),
        _parameter("as_json", False, as_json),
    ]
    _add_command(verb, text, command, parameters)


def _add_command(verb: str, text: str, command: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """A command whose parameters are not those that its function is written with."""
    wrapped = _command(command)
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    app.command(verb, help=text)(wrapped)


def _option_parameters(fields: Iterable[dataclasses.Field[Any]]) -> list[inspect.Parameter]:
    return [_parameter(field.name, None, _annotation(field)) for field in fields]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(field: dataclasses.Field[Any]) -> Any:
    """The command-line type of an option: repeated for lists and mappings of texts, separated by commas for layers."""
    meta = field.metadata
    flag = "--" + (meta["flag"] or field.name.replace("_", "-"))
    help_text = meta["help"]
    if meta["choices"]:
        help_text += f" One of {', '.join(meta['choices'])}."
    if field.default is not dataclasses.MISSING and field.default is not None and field.type != "bool":
        help_text += f" Default: {field.default}."
    kinds: dict[str, Any] = {"int": int, "float": float, "bool": bool}
    text = str(field.type)
    if text in ("list[str]", "dict[str, str]"):
        kind: Any = list[str] | None
    else:
        kind = kinds.get(text.removesuffix(" | None"), str) | None
    if text == "bool" and field.default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    option = typer.Option(flag, help=help_text, rich_help_panel=meta["group"], show_default=False)
    return Annotated[kind, option]


def _parse(name: str, value: Any) -> Any:
    """The value of an option as RunOptions takes it."""
    if name == "label_words":
        pairs = [text.partition("=") for text in value]
        wrong = [text for text, (_, sign, word) in zip(value, pairs, strict=True) if not (sign and word)]
        if wrong:
            raise InputError(f"--label-word {wrong[0]!r} is not LABEL=WORD; write for example positive=great.")
        return {label: word for label, _, word in pairs}
    if name in ("prompt_layers", "candidate_layers"):
        if name == "prompt_layers" and value in ("all", "middle", "first"):
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {value!r} is not a list of layers; write indices such as 3,5.") from None
    return value


_add_run_command("fit", "The main job: find the prompt layers, train prompts at only those, evaluate and save.")
_add_run_command("search", "Only find the prompt layers.")
_add_run_command("train", "Train prompts at given layers, evaluate and save.")


# -- compare ------------------------------------------------------------------------------------------------------


def _compare(
    study: Path | None,
    methods: str | None,
    seeds: str | None,
    output: Path | None,
    dry_run: bool,
    retry_failed: bool,
    ray: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    options = {name: _parse(name, value) for name, value in given.items() if value is not None}
    if output is None and not dry_run:
        raise InputError("--output is missing: name a folder for what the comparison writes.")
    with _running(f"the same command; what is done in {output} is not repeated" if output else None):
        from sptune.compare import compare as run_study
        from sptune.compare.comparison import as_study

        if study is not None and options:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise InputError(f"--study {study} says what to compare; write {named} into it.")
        values = read_config(study) if study is not None else _one_task(options)
        only = None if methods is None else methods.split(",")
        if study is None and only is not None:
            values["methods"] = only
        if seeds is not None:
            values["seeds"] = _integers("--seeds", seeds)
        wanted = as_study(values)
        if dry_run:
            _print_runs(wanted, only, as_json)
            return
        assert output is not None
        with _StudyProgress(wanted) as progress:
            comparison = run_study(wanted, output, only=only, retry_failed=retry_failed, ray=ray, watcher=progress)  # type: ignore[arg-type]
    if as_json:
        _print_json([line.to_dict() for line in comparison.summary])
    else:
        _print_comparison(comparison)
    if not any(line.runs for line in comparison.summary):
        raise typer.Exit(FAILED)


def _one_task(options: dict[str, Any]) -> dict[str, Any]:
    """A study of the one task that the options name."""
    name = options.get("task") or Path(options.get("train_file") or options.get("data") or "data").stem
    return {"tasks": {name: options}}


def _integers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of whole numbers; write for example 0,1,2.") from None


class _StudyProgress:
    """Shows a study on standard error: a live table on a terminal, a line a run elsewhere.

    It is a `sptune.compare.work.Watcher`; not by inheritance, because importing that takes seconds.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: list[dict[str, Any]] | None = None
        self.under_way: dict[str, Any] = {}
        self._live = Live(console=messages, auto_refresh=False, transient=True)

    def __enter__(self) -> _StudyProgress:
        if messages.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def began(self, spec: RunSpec) -> None:
        """This process began a run."""
        self.under_way[spec.id] = spec
        self._show()

    def changed(self, rows: list[dict[str, Any]]) -> None:
        """These rows are there now."""
        before = None if self.rows is None else {row["run"] for row in self.rows}
        self.rows = rows
        new = [row for row in rows if before is not None and row["run"] not in before]
        for row in new:
            self.under_way.pop(row["run"], None)
        if not messages.is_terminal:
            done = len(self.study.own(rows))
            everything = len(self.study.tuning_runs()) + len(self.study.final_runs({}))
            for row in new:
                title, outcome = _run_title(row), _run_outcome(row)
                messages.print(escape(f"{title}: {outcome}; {done} of {everything} runs done"), soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if messages.is_terminal:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        """Each method's mean so far by task, and how many of its runs are done."""
        from sptune.compare.summary import summarise

        rows = self.rows or []
        known = {row["run"] for row in rows}
        lines = summarise(self.study, rows)
        tuning = {name: [spec for spec in self.study.tuning_runs() if spec.name == name] for name in self.study.methods}
        table = Table("method", "rates tried", *self.study.tasks, "runs done", "failed", box=None)
        for line in lines:
            tried = tuning[line.method]
            table.add_row(
                line.method,
                f"{sum(spec.id in known for spec in tried)}/{len(tried)}" if tried else "",
                *(f"{line.scores[task]:.4f}" if task in line.scores else "" for task in self.study.tasks),
                f"{line.runs}/{len(self.study.tasks) * len(self.study.seeds)}",
                str(line.failed or ""),
            )
        for spec in self.under_way.values():
            table.caption = f"now: {spec.name} on {spec.task}, seed {spec.seed}, rate {spec.learning_rate:g}"
        return table


def _run_title(row: dict[str, Any]) -> str:
    kind = "rate" if row["tuning"] else f"seed {row['seed']}, rate"
    return f"{row['method']} on {row['task']}, {kind} {row['learning_rate']:g}"


def _run_outcome(row: dict[str, Any]) -> str:
    if row["state"] != "done":
        return f"{row['state']} ({row['error']})"
    split = "validation" if row["tuning"] else "test"
    return f"{split} {row[split]['score']:.4f}, {row['seconds']['total']:.0f} s"


def _print_runs(study: Study, only: list[str] | None, as_json: bool) -> None:
    """What a study would do; nothing of it is loaded."""
    from sptune.compare.comparison import check_methods

    check_methods(study, only)
    methods = {name: method for name, method in study.methods.items() if only is None or name in only}
    specs = [spec for spec in (*study.tuning_runs(), *study.final_runs({})) if spec.name in methods]
    if as_json:
        for spec in specs:
            options = {key: value for key, value in spec.run_options("").lasting().items() if value is not None}
            print(json.dumps({"task": spec.task, "method": spec.name, "tuning": spec.tuning,
                              "settings": {"kind": spec.method.kind, **spec.method.settings}, "options": options},
                             ensure_ascii=False))  # fmt: skip
        return
    table = Table("method", "kind", "learning rates", "settings", box=None)
    for name, method in methods.items():
        rates = ", ".join(f"{rate:g}" for rate in method.learning_rates)
        table.add_row(name, method.kind, rates, escape(", ".join(f"{k}={v}" for k, v in method.settings.items())))
    results.print(table)
    results.print(f"Tasks: {', '.join(study.tasks)}; seeds: {', '.join(map(str, study.seeds))}")
    tuning = sum(spec.tuning for spec in specs)
    results.print(f"Runs: {tuning} to choose learning rates, {len(specs) - tuning} to report")


def _print_comparison(comparison: Comparison) -> None:
    against, tasks = comparison.study.against, list(comparison.study.tasks)
    shown = [line for line in comparison.summary if line.runs or line.failed]
    over = f"minus {against} (95 % interval)"
    scores = Table("method", *tasks, *(["mean"] if len(tasks) > 1 else []), "sd", over, "runs", box=None)
    costs = Table("method", "parameters", "s/step", "seconds", f"by {against}'s", "memory, MB", "saved, kB", "rates",
                  box=None)  # fmt: skip
    for line in shown:
        style = "bold" if line.method == against else ""
        means = [line.scores.get(task) for task in tasks] + ([line.mean] if len(tasks) > 1 else [])
        scores.add_row(
            line.method,
            *(_number(value, ".4f") for value in means),
            _number(line.deviation, ".4f"),
            _number(line.difference, "+.4f")
            + ("" if math.isnan(line.low) else f" [{line.low:+.4f}, {line.high:+.4f}]"),
            f"{line.runs}" + (f", {line.failed} failed" if line.failed else ""),
            style=style,
        )
        costs.add_row(
            line.method,
            _number(line.parameters, ",.0f"),
            _number(line.step_seconds, ".3f"),
            _number(line.seconds, ".1f"),
            _number(line.speed, ".2f"),
            _number(line.memory and line.memory / 1e6, ",.0f"),
            _number(line.adapter_bytes / 1e3, ",.0f"),
            ", ".join(f"{rate:g}" for rate in dict.fromkeys(line.rates.values())) if line.parameters else "",
            style=style,
        )
    results.print(scores)
    if len(tasks) == 1 and len(comparison.study.seeds) < FEW_SEEDS:
        results.print(f"An interval needs two seeds at least, and says little below {FEW_SEEDS}.")
    results.print()
    results.print(costs)
    failed = [row for row in comparison.rows if row["state"] == "failed"]
    for row in failed[:5]:
        messages.print(f"[yellow]Failed:[/] {escape(_run_title(row))}: {escape(row['error'])}", soft_wrap=True)
    if failed:
        messages.print(f"{len(failed)} failed runs in all; --retry-failed does them again.")
    results.print(f"Runs, summary and pictures: {escape(str(comparison.output_dir))}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


_SHARED = [field for field in dataclasses.fields(RunOptions) if field.name in SHARED_OPTIONS]
_add_command(
    "compare",
    "Compare methods (prompts, LoRA, prompt tuning, ...) on a task or a study of tasks, over seeds.",
    _compare,
    [
        *_option_parameters(_SHARED),
        *(
            _parameter(name, default, Annotated[kind, typer.Option(flag, help=text, rich_help_panel="Study")])
            for name, default, kind, flag, text in (
                ("study", None, Path | None, "--study", "YAML file: methods, tasks, seeds, options."),
                ("methods", None, str | None, "--methods",
                 f"Methods, separated by commas; of a --study, those to do now. Default: {','.join(DEFAULT_METHODS)}."),
                ("seeds", None, str | None, "--seeds", "Seeds of the reported runs. Default: 0,1,2."),
                ("output", None, Path | None, "--output", "Folder for runs, summary and pictures."),
                ("dry_run", False, bool, "--dry-run", "Only show what would be run; nothing is loaded."),
                ("retry_failed", False, bool, "--retry-failed", "Do failed runs again."),
                ("ray", None, str | None, "--ray", "Address of a Ray cluster to do the runs on, such as auto."),
                ("as_json", False, bool, "--json", "Print the result as JSON."),
            )
        ),
    ],
)  # fmt: skip


# -- the other verbs ----------------------------------------------------------------------------------------------


@app.command()
@_command
def evaluate(
    adapter: AdapterOption,
    test_file: Annotated[Path, typer.Option(help="Labelled data: .jsonl, .csv, .tsv or .parquet.")],
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column with the text; twice for pairs. Default: as in training.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with the label. Default: as in training.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write predictions here, as JSON Lines.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score an adapter on labelled data."""
    with _running() as stages:
        from sptune import pipeline

        metrics = pipeline.evaluate(
            adapter,
            test_file,
            text_columns=text_column,
            label_column=label_column,
            output=output,
            monitor=stages,  # type: ignore[arg-type]
        )
    if as_json:
        _print_json(metrics)
        return
    for name, value in metrics.items():
        results.print(f"{name:10} {value:.4f}" if isinstance(value, float) else f"{name:10} {value}")


@app.command()
@_command
def predict(
    adapter: AdapterOption,
    input: Annotated[Path, typer.Option("--input", help="Texts: .jsonl, .csv, .tsv or .parquet.")],
    output: Annotated[
        Path | None, typer.Option(help="Write predictions here, as JSON Lines. Default: print them.")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Column with the text; twice for pairs. Default: as in training.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Predict the class of new texts."""
    with _running() as stages:
        from sptune import pipeline

        rows = pipeline.predict(adapter, input, output, text_columns=text_column, monitor=stages)  # type: ignore[arg-type]
    if as_json:
        _print_json({"predictions": len(rows), "output": str(output)} if output else rows)
    elif output is not None:
        results.print(f"{len(rows)} predictions are in {escape(str(output))}")
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))


@app.command(name="inspect")
@_command
def inspect_adapter(adapter: AdapterOption, as_json: JsonFlag = False) -> None:
    """Show what an adapter is."""
    from sptune import pipeline

    about = pipeline.inspect(adapter)
    if as_json:
        _print_json(about)
        return
    table = Table(show_header=False, box=None)
    for name, value in about.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_shown(one)}" for key, one in value.items() if one not in (None, [], ""))
        table.add_row(name.replace("_", " "), escape(_shown(value)))
    results.print(table)


@app.command()
@_command
def tasks(as_json: JsonFlag = False) -> None:
    """List the benchmark tasks."""
    from sptune.tasks import BENCHMARK_TASKS

    described = {name: task.to_dict() for name, task in BENCHMARK_TASKS.items()}
    if as_json:
        _print_json(described)
        return
    table = Table("task", "text columns", "template", "classes: label words", "metrics")
    for name, task in described.items():
        words = ", ".join(f"{label}: {word}" for label, word in zip(task["labels"], task["label_words"], strict=True))
        row = (name, ", ".join(task["text_fields"]), task["template"], words, ", ".join(task["metrics"]))
        table.add_row(*map(escape, row))
    results.print(table)


@app.command()
@_command
def models(as_json: JsonFlag = False) -> None:
    """List the model families that can take prompts."""
    from sptune.backbones import FAMILIES

    described = {name: {"attention": "causal" if family.causal else "both ways"} for name, family in FAMILIES.items()}
    if as_json:
        _print_json(described)
        return
    table = Table("family", "attention", "tasks")
    for name, about in described.items():
        both = "verbalizer, classifier" if name != "electra" else "classifier, verbalizer with a generator checkpoint"
        table.add_row(name, about["attention"], both)
    results.print(table)
    results.print("Another family with blocks like Llama's or BERT's: name its list of blocks with --layers-path.")


@app.command()
@_command
def demo(
    output: Annotated[Path, typer.Option(help="Folder for what the run writes.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option(help="Replace the run that the folder holds.")] = False,
) -> None:
    """Search, train and compare on MiniLM-L6 and movie reviews (needs the extra 'demo')."""
    with _running() as stages:
        from sptune.demo import run_demo, summary

        run = run_demo(output, overwrite=overwrite, monitor=stages)  # type: ignore[arg-type]
    _print_run(run, as_json=False)
    print(json.dumps(summary(run)))


# -- printing -----------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_run(run: Run, as_json: bool) -> None:
    if as_json:
        folders = {"output_dir": str(run.output_dir)}
        if run.metrics:
            folders["adapter_dir"] = str(run.adapter_dir)
        _print_json({**folders, "prompt_layers": run.prompt_layers, **run.metrics})
        return
    search_file = run.output_dir / "search.json"
    if search_file.exists():
        from sptune.search import SearchResult

        found = SearchResult.load(search_file)
        if found.history:
            _print_layers(found)
        for remark in found.remarks:
            results.print(remark)
    results.print(f"Prompt layers: [bold]{', '.join(map(str, run.prompt_layers))}[/]")
    if run.metrics:
        _print_scores(run.metrics)
        parameters = run.metrics["parameters"]
        results.print(
            f"Trained parameters: {parameters['trainable']:,} ({parameters['generators']:,} in prompt generators), "
            f"of {parameters['total']:,} in all; adapter: {run.metrics['adapter_bytes']:,} bytes; "
            f"time: {run.metrics['seconds']['total']:.0f} s"
            + (f", {run.metrics['search_share']:.0%} of it for the search" if "search" in run.metrics else "")
        )
        results.print(f"Adapter: {escape(str(run.adapter_dir))}")
    results.print(f"Everything else: {escape(str(run.output_dir))}")


def _print_layers(found: SearchResult) -> None:
    """The candidates by falling score, with bars where scores are gates."""
    table = Table("layer", "score", "", title=f"Score: {found.score_name}", box=None, title_justify="left")
    for layer, score in sorted(
        zip(found.candidate_layers, found.scores, strict=True), key=lambda one: one[1], reverse=True
    ):
        chosen = layer in found.prompt_layers
        bar = "█" * max(1, round(40 * score)) if found.search.reading == "gates" else ""
        style = "bold green" if chosen else "dim"
        table.add_row(f"{layer}", f"{score:.3f}", f"{bar} {'chosen' if chosen else ''}", style=style)
    results.print(table)


def _print_scores(metrics: dict[str, Any]) -> None:
    shown = [name for name in ("accuracy", "f1", "mean") if name in metrics["test"]]
    table = Table("", *(f"{split} {name}" for split in ("validation", "test") for name in shown), box=None)
    rows = [("prompts", metrics)]
    if "baseline" in metrics:
        rows.insert(0, (metrics["baseline"]["kind"], metrics["baseline"]))
        rows.append(("gain", metrics["gain"]))
    for title, values in rows:
        sign = "+" if title == "gain" else ""
        table.add_row(
            title,
            *(f"{values[split][name]:{sign}.4f}" for split in ("validation", "test") for name in shown),
            style="bold" if title == "prompts" else "",
        )
    results.print(table)
    results.print(f"Test examples: {metrics['test']['examples']:,}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    app(args=arguments, prog_name="sptune")
    sys.exit(0)
