"""`compare`: does the runs of a study, and writes its summary, tables and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sptune import whole_files
from sptune.compare.comparison_report import STUDY_FILE, SUMMARY_FILE, write_comparison_report
from sptune.compare.methods import ADAPTERS, PROMPTS, with_new_name
from sptune.compare.networks import lowest_layer
from sptune.compare.pictures import plot_layers, plot_scores, searching
from sptune.compare.run_log import LOCKS_FOLDER, ROWS_FILE, RUNS_FOLDER, RunLog, read_rows
from sptune.compare.run_spec import Row, RunSpec
from sptune.compare.study import Study
from sptune.compare.study_run import FAILED
from sptune.compare.summary import Line, summarize
from sptune.compare.tables import cost_table, score_table
from sptune.compare.workers import Watcher, ray_cluster, work, work_on_ray
from sptune.errors import InputError
from sptune.modeling.loading import check_supported, find_source, load_config, text_config
from sptune.runs.options.prompt_checks import check_prompts
from sptune.runs.output_folder import REPORT_FILE
from sptune.runs.processes import processes
from sptune.runs.task_data import read_data
from sptune.whole_files import expanded

TABLES_FILE = "summary.md"
PICTURES = BY_PARAMETERS, BY_TIME, LAYERS = "accuracy_by_parameters.png", "accuracy_by_time.png", "layers.png"


@dataclass(frozen=True)
class Comparison:
    """What a study showed.

    Attributes:
        study: what was compared.
        output_dir: its folder.
        rows: one for each run.
        summary: one line for each method.
        others: how many runs the folder holds that are not of this study.
    """

    study: Study
    output_dir: Path
    rows: list[Row]
    summary: list[Line]
    others: int


def compare(
    study: Study | Mapping[str, Any] | str | Path,
    output_dir: str | Path,
    *,
    only: Sequence[str] | None = None,
    retry_failed: bool = False,
    ray: str | None = None,
    watcher: Watcher | None = None,
) -> Comparison:
    """Run methods on tasks with seeds, and compare them.

    Each method gets the same data, the same head and the same steps. Its learning rate is chosen by the validation
    score on a draw of the data that no result is reported on. Runs that the folder holds are not repeated, so the call
    can be stopped and made again, and several processes can make it at once.

    Args:
        study: the study, a mapping of its parts (see `Study.from_mapping`), or a YAML file of them.
        output_dir: folder for what the study writes; it may hold runs of other studies.
        only: methods to run now; None for all. The result has what is there of the others, too.
        retry_failed: repeat runs that failed, of the methods to run now.
        ray: address of a Ray cluster to do the runs on; None to do them here.
        watcher: receives progress events.

    Raises:
        SptuneError: the folder was removed meanwhile, or, as InputError, the study or its data cannot be right.
    """
    study = dataclasses.replace(as_study(study))  # its runs are of the files as they are now
    folder, watcher, only = expanded(output_dir), watcher or Watcher(), methods_of(study, only)
    _check_call(study, folder)
    begun = read_rows(folder)
    failed = {row["run"] for row in study.own(begun, only) if row["state"] == FAILED and retry_failed}
    left = study.pending([row for row in begun if row["run"] not in failed], only)
    check_libraries(study, left, only)
    for task, notes in check_data(study, left).items():
        for note in notes:
            watcher.noted(task, note)
    with ray_cluster(ray) if ray else contextlib.nullcontext() as cluster:
        log = _begin(study, folder, failed)
        if cluster is None:
            work(study, folder, watcher, only)
        else:
            work_on_ray(cluster, study, folder, watcher, only)
    with contextlib.suppress(OSError):
        (folder / RUNS_FOLDER).rmdir()  # unless a process is still at work
    return _conclude(study, folder, log)


def _check_call(study: Study, folder: Path) -> None:
    if processes().num_processes > 1:
        raise InputError(
            "A comparison is not started with accelerate launch; start several processes with the same folder instead."
        )
    check_output(folder)
    _check_apart(study, folder)


def _check_apart(study: Study, folder: Path) -> None:
    """Refuse to write where each run would change the data or the backbone, and so what the next one is.

    Raises:
        InputError: the task, what its runs read, and the folder.
    """
    place = folder.resolve()
    for task, options in study.tasks.items():
        for name in ("dataset", "model"):
            read = Path(options.get(name) or "")
            # Of a backbone, folders inside do not count (`RunSpec.id`).
            within = place == read or (name == "dataset" and read in place.parents)
            if options.get(name) and read.is_dir() and within:
                raise InputError(
                    f"Task {task}: {name}={str(read)!r} holds the output folder {folder}, and what is written there "
                    "would count as changed content; name an output folder outside of it."
                )


def _begin(study: Study, folder: Path, failed: set[str]) -> RunLog:
    """Write the study into its folder, and take back the runs that failed and are to be done again.

    Raises:
        InputError: the folder cannot be written to.
    """
    written = yaml.safe_dump(study.to_dict(), sort_keys=False, allow_unicode=True)
    try:
        log = RunLog(folder)
        if failed:
            log.forget_failed(failed)
        with log.lock:
            whole_files.write_text(folder / STUDY_FILE, written)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); name another folder.") from None
    return log


def _conclude(study: Study, folder: Path, log: RunLog) -> Comparison:
    """Summarize all runs of the folder and write the results."""
    with log.lock:  # the last of several processes that end together writes what all have done
        rows = log.read()
        own = study.own(rows)
        comparison = Comparison(study, folder, own, summarize(study, rows), len(rows) - len(own))
        write_results(comparison)
    return comparison


def as_study(study: Study | Mapping[str, Any] | str | Path) -> Study:
    """The study itself, from whatever stands for it.

    Raises:
        InputError: it cannot be right.
    """
    if isinstance(study, Study):
        return study
    return Study.from_mapping(study, "study") if isinstance(study, Mapping) else Study.read(study)


def check_output(folder: Path) -> None:
    """Refuse a folder in which a study would replace what no study has written.

    Raises:
        InputError: what it would replace.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder for what the study writes.")
    held = [
        name for name in (STUDY_FILE, SUMMARY_FILE, TABLES_FILE, REPORT_FILE, *PICTURES) if (folder / name).exists()
    ]
    if held and not any((folder / name).exists() for name in (ROWS_FILE, LOCKS_FOLDER)):
        raise InputError(
            f"{folder}: has no runs of a study, but {', '.join(held)}, which this one would replace; name another "
            "folder."
        )


def methods_of(study: Study, only: Sequence[str] | None) -> list[str] | None:
    """The methods to run now by their present names; None for all.

    Raises:
        InputError: the study has no such method.
    """
    if only is None:
        return None
    only = [name if name in study.methods else with_new_name(name) for name in only]
    unknown = [name for name in only if name not in study.methods]
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not a method of the study, whose methods are {', '.join(study.methods)}; write it into "
            "the study."
        )
    return only


def check_libraries(study: Study, left: Sequence[RunSpec], only: Sequence[str] | None) -> None:
    """Refuse runs that are left to do whose library is missing.

    Raises:
        InputError: which one, and how to install it.
    """
    wanted = list(dict.fromkeys(spec.name for spec in left if spec.method.kind == ADAPTERS))
    if wanted and importlib.util.find_spec("adapters") is None:
        others = ",".join(name for name in only or study.methods if name not in wanted)
        here = f"do the others here (--methods {others}), and these" if others else "do these"
        raise InputError(
            f"{', '.join(wanted)}: needs the library adapters, which is not installed. It works with transformers "
            f"4.57 only: {here} in an environment of their own, with the same output and the same study file. Install "
            "sptune there with its extra, such as pip install '.[adapters]' in a clone."
        )


def check_data(study: Study, left: Sequence[RunSpec]) -> dict[str, list[str]]:
    """Read each task's data and its backbone's configuration once, before anything is trained.

    Args:
        study: whose tasks they are.
        left: the runs that are to be done; their layers must fit the backbone.

    Returns:
        What is to be said about the data, with the first of the seeds, of each task that has runs left to do.

    Raises:
        InputError: what is wrong with them, or which layers do not fit the backbone.
    """
    same: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for task in study.tasks:
        spec = next(one for one in study.final_runs({}) if one.task == task)
        if (other := same.setdefault(spec.id, task)) != task:
            raise InputError(
                f"Tasks {other} and {task} are the same runs: of the same data with the same options (bf16 "
                "aside, which is not part of what a run is). Take one of them out, or change it."
            )
        try:
            options = spec.run_options("")
            source = find_source(options.model, options.gguf_file, options.revision, options.dtype)
            said = read_data(options)[1].notes
            config = load_config(source)
            check_supported(config, options.prompts.placement, options.prompts.layers_path)
        except InputError as error:
            raise InputError(f"Task {task}: {error}") from error
        own = [one for one in left if one.task == task]
        if own:
            notes[task] = said
        for name, one in {one.name: one for one in own}.items():
            try:
                if one.method.kind == PROMPTS:
                    check_prompts(one.run_options(""), config)
                elif "from_layer" in one.method.settings:
                    lowest_layer(one.method.settings["from_layer"], text_config(config).num_hidden_layers)
            except InputError as error:
                raise InputError(f"{name} on {task}: {error}") from error
    return notes


def write_results(comparison: Comparison) -> None:
    """Write the summary, as JSON and as tables in Markdown, the pictures and the report of a comparison."""
    folder, study, summary = comparison.output_dir, comparison.study, comparison.summary
    whole_files.write_json(folder / SUMMARY_FILE, [line.to_dict() for line in summary])
    tables = score_table(study, summary, comparison.rows), cost_table(study, summary)
    whole_files.write_text(folder / TABLES_FILE, "\n".join(table.to_markdown() for table in tables))
    against = study.against
    drawers: dict[str, Callable[[Path], Any]] = {
        BY_PARAMETERS: lambda path: plot_scores(summary, "parameters", against, path),
        BY_TIME: lambda path: plot_scores(summary, "seconds", against, path),
    }
    if searching(summary):
        drawers[LAYERS] = lambda path: plot_layers(summary, path)
    else:
        whole_files.remove(folder / LAYERS)  # of a study that was here before
    for name, draw in drawers.items():
        with whole_files.written_whole(folder / name) as partial:
            draw(partial)
    write_comparison_report(folder)
