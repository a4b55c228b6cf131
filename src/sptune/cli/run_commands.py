"""The commands whose options are those of a run: fit, search, train and compare."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sptune.cli.app import FAILED, add_command, running
from sptune.cli.option_flags import FLAGS, given_options, option_parameters, parameter
from sptune.cli.terminal import StudyProgress, print_comparison, print_json, print_run, print_study
from sptune.compare.methods import DEFAULT_METHODS
from sptune.errors import InputError
from sptune.extras import require
from sptune.runs.options.option_checks import check_backbone_and_data
from sptune.runs.options.option_mappings import merged
from sptune.runs.options.run_options import CONDUCT, ORIGIN, SHARED_OPTIONS, RunOptions, all_options
from sptune.runs.output_folder import CONFIG_FILE, check_sources, read_config


def _add_run_command(verb: str, text: str) -> None:
    """A command whose options are the fields of RunOptions that this verb takes."""

    def command(config: Path | None, as_json: bool, **given: Any) -> None:
        values = given_options(given)
        begun: dict[str, Any] = {}
        if config is not None:
            begun = read_config(config)
            RunOptions.from_mapping(begun, str(config))
        options = merged(begun, values)
        if not options.get("resume"):  # a run that is resumed has its own
            check_backbone_and_data(vars(RunOptions.from_mapping(options, ORIGIN)))
        output = options.get("output_dir")
        if config is not None and output and options.get("overwrite"):
            check_sources(Path(output), [str(config)])
        sptune = ["sptune"] if shutil.which("sptune") else [sys.executable, "-m", "sptune"]
        again = shlex.join([*sptune, verb, "--output", str(output), "--resume", *_kept(options)]) if output else None
        before = None if options.get("resume") else _config_version(output)
        with running(again, begun=lambda: _config_version(output) not in (None, before)) as stages:
            from sptune.runs import run as pipeline

            run = getattr(pipeline, verb)(**options, monitor=stages)
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
        *option_parameters(option for option in all_options().values() if verb in option.verbs),
        parameter("config", None, config),
        parameter("as_json", False, as_json),
    ]
    add_command(verb, text, command, parameters)


def _config_version(output: str | None) -> tuple[int, int] | None:
    """What tells the config.yaml of an output folder from one that is written later; None if there is none."""
    try:
        about = (Path(output or "") / CONFIG_FILE).stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _kept(options: Mapping[str, Any]) -> Iterator[str]:
    """The flags that a run needs again when it is resumed, because its config.yaml does not hold them."""
    for name in CONDUCT:
        flag, value = FLAGS[name], options.get(name)
        if name in ("output_dir", "resume", "overwrite") or value in (None, all_options()[name].default):
            continue
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            for one in value if isinstance(value, list) else [value]:
                yield from (flag, str(one))


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
    options = given_options(given)
    if output is None and not dry_run:
        raise InputError("--output is missing: name a folder for what the comparison writes.")
    if ray is not None:
        require("ray", "--ray")
    with running(f"the same command; what is done in {output} is not repeated" if output else None) as stages:
        from sptune.compare import Study
        from sptune.compare import compare as run_study
        from sptune.compare.comparison import methods_of

        if study is not None and options:
            named = ", ".join(FLAGS[name] for name in options)
            raise InputError(f"--study {study} says what to compare; write {named} into it.")
        values = read_config(study) if study is not None else _one_task(options)
        only = None if methods is None else [name.strip() for name in methods.split(",")]
        if study is None and only is not None:
            values["methods"] = only
        if seeds is not None:
            values["seeds"] = _integers("--seeds", seeds)
        wanted = Study.from_mapping(values, str(study) if study is not None else ORIGIN)
        only = methods_of(wanted, only)
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


_add_run_command("fit", "The main job: find the prompt layers, train prompts at only those, evaluate and save.")
_add_run_command("search", "Only find the prompt layers.")
_add_run_command("train", "Train prompts at given layers, evaluate and save.")

_SHARED = [all_options()[name] for name in SHARED_OPTIONS]
add_command(
    "compare",
    "Compare methods (prompts, LoRA, prompt tuning, ...) on a task or a study of tasks, over seeds.",
    _compare,
    [
        *option_parameters(_SHARED),
        *(
            parameter(name, default, Annotated[kind, typer.Option(flag, help=text, rich_help_panel="Study")])
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
