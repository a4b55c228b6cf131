"""The command line: verbs and their options. What it runs is loaded only when needed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import json
import logging
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from sptune.cli.terminal import (
    Stages,
    StudyProgress,
    messages,
    print_comparison,
    print_json,
    print_run,
    print_study,
    results,
    shown,
)
from sptune.compare.methods import DEFAULT_METHODS
from sptune.errors import InputError, SptuneError
from sptune.runs.option_mappings import RENAMED, merged, with_new_names
from sptune.runs.option_types import Option
from sptune.runs.output_folder import CONFIG_FILE, read_config
from sptune.runs.run_options import CONDUCT, ORIGIN, SHARED_OPTIONS, RunOptions, all_options
from sptune.search.searchers import FIXED_SETTINGS

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Learn at which layers to prompt a frozen transformer, and train prompts at only those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for machines.")]
OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Replace the file that --output names.")]
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


@contextlib.contextmanager
def _running(resume: str | None = None) -> Iterator[Stages]:
    """Sets up a command that loads models, and turns errors into messages and exit codes.

    Args:
        resume: how to continue the run if it is interrupted.
    """
    stages = Stages()
    try:
        with stages:
            _quiet_libraries()
            yield stages
            # Not after an error: another process may still wait for this one, which ends as soon as it sees it fail.
            from sptune.runs.progress import leave_processes

            leave_processes()
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
            # What is wrong with a study file is said in the file's own words.
            message = str(error) if kwargs.get("study") else _in_flags(str(error))
            messages.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
            raise typer.Exit(WRONG_INPUT if isinstance(error, InputError) else FAILED) from None

    return wrapped


_FLAGS = {name: f"--{option.flag}" for name, option in all_options().items()}
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
    for library in ("huggingface_hub", "adapters"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate|datasets)\b")


# -- fit, search, train -------------------------------------------------------------------------------------------


def _add_run_command(verb: str, text: str) -> None:
    """A command whose options are the fields of RunOptions that this verb takes."""

    def command(config: Path | None, as_json: bool, **given: Any) -> None:
        values = _given(given)
        begun: dict[str, Any] = {}
        if config is not None:
            begun = read_config(config)
            RunOptions.from_mapping(begun, str(config))
        output = values.get("output_dir", begun.get("output_dir"))
        sptune = ["sptune"] if shutil.which("sptune") else [sys.executable, "-m", "sptune"]
        again = shlex.join([*sptune, verb, "--output", str(output), "--resume", *_kept(values)]) if output else None
        with _running(again) as stages:
            from sptune.runs import run as pipeline

            run = getattr(pipeline, verb)(**merged(begun, values), monitor=stages)
        if stages.is_main:
            print_run(run, as_json)

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
        *_option_parameters(option for option in all_options().values() if verb in option.verbs),
        _parameter("config", None, config),
        _parameter("as_json", False, as_json),
    ]
    _add_command(verb, text, command, parameters)


def _kept(values: Mapping[str, Any]) -> Iterator[str]:
    """The flags that a run needs again when it is resumed, because its config.yaml does not hold them."""
    for name in CONDUCT:
        if name in values and name not in ("output_dir", "resume", "overwrite"):
            flag, value = _FLAGS[name], values[name]
            if isinstance(value, bool):
                yield flag if value else flag.replace("--", "--no-", 1)
            else:
                yield from (flag, str(value))


def _add_command(verb: str, text: str, command: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """A command whose parameters are not those that its function is written with."""
    wrapped = _command(command)
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    app.command(verb, help=text)(wrapped)


def _option_parameters(options: Iterable[Option]) -> list[inspect.Parameter]:
    """The parameters of these options, and hidden ones for the old names of some."""
    options = list(options)
    old = {new: old for old, new in RENAMED.items()}
    renamed = [
        dataclasses.replace(option, name=old[option.name], flag=old[option.name].replace("_", "-"))
        for option in options
        if option.name in old
    ]
    return [
        *(_parameter(option.name, None, _annotation(option)) for option in options),
        *(_parameter(option.name, None, _annotation(option, hidden=True)) for option in renamed),
    ]


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option, *, hidden: bool = False) -> Any:
    """The command-line type of an option: repeated for lists and mappings of texts, separated by commas for layers."""
    flag, help_text = f"--{option.flag}", option.help
    is_switch = option.hint in (bool, bool | None)
    if option.choices:
        help_text += f" One of {', '.join(option.choices)}."
    if option.default is not None and not is_switch:
        help_text += f" Default: {option.default}."
    kind: Any = str
    if option.hint in (list[str], dict[str, str]):
        kind = list[str]
    else:
        for simple in (bool, int, float):
            if option.hint in (simple, simple | None):
                kind = simple
    if is_switch and option.default is not False:
        flag = f"{flag}/--no-{option.flag}"
    shown = typer.Option(flag, help=help_text, rich_help_panel=option.group, show_default=False, hidden=hidden)
    return Annotated[kind | None, shown]


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options given on the command line as RunOptions takes them, by their present names."""
    given = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name in RENAMED:
            old, new = name.replace("_", "-"), RENAMED[name].replace("_", "-")
            messages.print(f"[yellow]Note:[/] --{old} is now --{new}; the old name will be removed.", soft_wrap=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the note says it
        return {name: _parse(name, value) for name, value in with_new_names(given).items()}


def _parse(name: str, value: Any) -> Any:
    """The value of an option as RunOptions takes it."""
    if name == "label_words":
        pairs = [text.partition("=") for text in value]
        wrong = [text for text, (_, sign, word) in zip(value, pairs, strict=True) if not (sign and word)]
        if wrong:
            raise InputError(f"--label-word {wrong[0]!r} is not LABEL=WORD; write for example positive=great.")
        return {label: word for label, _, word in pairs}
    if name in ("prompt_layers", "candidate_layers"):
        if name == "prompt_layers" and value in FIXED_SETTINGS:
            return value
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            raise InputError(f"{_FLAGS[name]} {value!r} is not a list of layers; write indices such as 3,5.") from None
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
    options = _given(given)
    if output is None and not dry_run:
        raise InputError("--output is missing: name a folder for what the comparison writes.")
    with _running(f"the same command; what is done in {output} is not repeated" if output else None) as stages:
        from sptune.compare import Study
        from sptune.compare import compare as run_study

        if study is not None and options:
            named = ", ".join(_FLAGS[name] for name in options)
            raise InputError(f"--study {study} says what to compare; write {named} into it.")
        values = read_config(study) if study is not None else _one_task(options)
        only = None if methods is None else [name.strip() for name in methods.split(",")]
        if study is None and only is not None:
            values["methods"] = only
        if seeds is not None:
            values["seeds"] = _integers("--seeds", seeds)
        wanted = Study.from_mapping(values, str(study) if study is not None else ORIGIN)
        if dry_run:
            print_study(wanted, only, as_json)
            return
        assert output is not None
        with StudyProgress(wanted, only, stages) as progress:
            comparison = run_study(wanted, output, only=only, retry_failed=retry_failed, ray=ray, watcher=progress)  # type: ignore[arg-type]
    if as_json:
        print_json([line.to_dict() for line in comparison.summary])
    else:
        print_comparison(comparison)
    if not any(line.runs for line in comparison.summary):
        raise typer.Exit(FAILED)


def _one_task(options: dict[str, Any]) -> dict[str, Any]:
    """A study of the one task that the options name."""
    name = options.get("task") or Path(options.get("train_file") or options.get("dataset") or "data").stem
    return {"tasks": {name: options}}


def _integers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text!r} is not a list of whole numbers; write for example 0,1,2.") from None


_SHARED = [all_options()[name] for name in SHARED_OPTIONS]
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
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Score an adapter on labelled data."""
    with _running() as stages:
        from sptune.runs import inference

        metrics = inference.evaluate(
            adapter,
            test_file,
            text_columns=text_column,
            label_column=label_column,
            output=output,
            overwrite=overwrite,
            monitor=stages,  # type: ignore[arg-type]
        )
    if as_json:
        print_json(metrics)
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
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict the class of new texts."""
    with _running() as stages:
        from sptune.runs import inference

        rows = inference.predict(
            adapter,
            input,
            output,
            text_columns=text_column,
            overwrite=overwrite,
            monitor=stages,  # type: ignore[arg-type]
        )
    if as_json:
        print_json({"predictions": len(rows), "output": str(output)} if output else rows)
    elif output is not None:
        results.print(f"{len(rows)} predictions are in {escape(str(output))}")
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))


@app.command(name="inspect")
@_command
def inspect_adapter(adapter: AdapterOption, as_json: JsonFlag = False) -> None:
    """Show what an adapter is."""
    from sptune.runs import inference

    about = inference.inspect(adapter)
    if as_json:
        print_json(about)
        return
    table = Table(show_header=False, box=None)
    for name, value in about.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {shown(one)}" for key, one in value.items() if one not in (None, [], ""))
        table.add_row(name.replace("_", " "), escape(shown(value)))
    results.print(table)


@app.command()
@_command
def tasks(as_json: JsonFlag = False) -> None:
    """List the benchmark tasks."""
    from sptune.tasks import BENCHMARK_TASKS

    described = {name: task.to_dict() for name, task in BENCHMARK_TASKS.items()}
    if as_json:
        print_json(described)
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
    from sptune.modeling.prepend.families import FAMILIES

    described = {name: {"attention": "causal" if family.causal else "both ways"} for name, family in FAMILIES.items()}
    if as_json:
        print_json(described)
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
        from sptune.runs.demo import run_demo, summary

        run = run_demo(output, overwrite=overwrite, monitor=stages)  # type: ignore[arg-type]
    print_run(run, as_json=False)
    print(json.dumps(summary(run)))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    app(args=arguments, prog_name="sptune")
    sys.exit(0)
