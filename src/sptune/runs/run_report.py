"""`write_run_report`: report.html of a run, from the files in its folder."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any

from sptune import whole_files
from sptune.errors import InputError
from sptune.report.run_page import RunRecord, run_page
from sptune.runs import output_folder as outputs
from sptune.runs.options.option_fields import ALL
from sptune.search.search_result import SearchResult
from sptune.tasks.generation_metrics import text_metrics

CODE = re.compile(r"^## Use\s+```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def write_run_report(folder: Path) -> Path:
    """Write report.html into the folder of a run.

    Returns:
        Its path.

    Raises:
        InputError: the folder holds no results of a run, or files that no run wrote.
    """
    if not any((folder / name).is_file() for name in (outputs.METRICS_FILE, outputs.SEARCH_FILE)):
        verb = outputs.begun_command(folder)
        again = f"; finish it with: {shlex.join(['sptune', str(verb), '--output', str(folder), '--resume'])}"
        raise InputError(
            f"{folder}: has no results of a run ({outputs.METRICS_FILE} and {outputs.SEARCH_FILE} are missing)"
            + (again if verb in ALL else "; name the output folder of a run or of a comparison.")
        )
    try:
        text = run_page(read_record(folder))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        files = outputs.METRICS_FILE, outputs.SEARCH_FILE, outputs.PREDICTIONS_FILE, outputs.HISTORY_FILE
        raise InputError(
            f"{folder}: one of {', '.join(files)} is damaged, or is not what a run writes ({type(error).__name__}: "
            f"{error}); repeat the run."
        ) from None
    whole_files.write_text(folder / outputs.REPORT_FILE, text)
    return folder / outputs.REPORT_FILE


def read_record(folder: Path) -> RunRecord:
    """What the files of a run say; a file that is missing is named in a remark.

    Raises:
        InputError: a file cannot be read.
    """
    search_file = folder / outputs.SEARCH_FILE
    search = SearchResult.load(search_file) if search_file.exists() else None
    metrics = _document(folder / outputs.METRICS_FILE, {})
    predictions = _read_lines(folder / outputs.PREDICTIONS_FILE)
    task = _document(folder / outputs.ADAPTER_FOLDER / outputs.TASK_FILE, {}).get("task", {})
    card, config = (_text(folder / name) for name in (f"{outputs.ADAPTER_FOLDER}/README.md", outputs.CONFIG_FILE))
    code = CODE.search(card)
    generates = "loss" in metrics.get("test", {})
    return RunRecord(
        name=metrics.get("task") or folder.resolve().name,
        metrics=metrics,
        search=search.to_dict() if search else None,
        score_name=search.score_name if search else "",
        history=_document(folder / outputs.HISTORY_FILE, []),
        predictions=predictions,
        similarities=[
            text_metrics([row["generated"]], [row["completion"]])["rouge_l"] for row in predictions if generates
        ],
        positive_label=task.get("positive_label"),
        usage=code[1].replace("path/to/this/folder", outputs.ADAPTER_FOLDER).strip() if code else "",
        config=config,
        remarks=[*(search.remarks if search else ()), *_missing(folder, metrics)],
        version=importlib.metadata.version("sptune"),
    )


def _missing(folder: Path, metrics: dict[str, Any]) -> list[str]:
    if not metrics:
        return [f"There is no {outputs.METRICS_FILE}: the run only searched, or is not finished."]
    names = (outputs.PREDICTIONS_FILE, f"{outputs.ADAPTER_FOLDER}/README.md", outputs.CONFIG_FILE)
    return [f"{name} is missing, and with it a part of this page." for name in names if not (folder / name).exists()]


def _document(path: Path, otherwise: Any) -> Any:
    """A JSON document of the same type as what stands in for a missing one.

    Raises:
        InputError: it cannot be read, or is of another type.
    """
    value = whole_files.read_json(path) if path.exists() else otherwise
    if not isinstance(value, type(otherwise)):
        raise InputError(f"{path}: holds {type(value).__name__}, not {type(otherwise).__name__}; repeat the run.")
    return value


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return outputs.read_json_lines(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON Lines ({error}); repeat the run.") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
