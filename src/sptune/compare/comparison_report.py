"""`write_comparison_report`: report.html of a comparison, from the files in its folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from sptune import whole_files
from sptune.errors import InputError
from sptune.report.comparison_page import comparison_page
from sptune.runs.output_folder import REPORT_FILE, read_config

STUDY_FILE, SUMMARY_FILE = "study.yaml", "summary.json"


def write_comparison_report(folder: Path) -> Path:
    """Write report.html into the folder of a comparison.

    Returns:
        Its path.

    Raises:
        InputError: the comparison is not finished, or a file is not what a comparison writes.
    """
    path, study = folder / SUMMARY_FILE, folder / STUDY_FILE
    if not path.exists():
        again = f"sptune compare --study {study} --output {folder}" if study.exists() else "the same command again"
        raise InputError(
            f"{folder}: holds a comparison that is not finished ({SUMMARY_FILE} is missing); go on with {again}, which "
            "does not repeat its runs."
        )
    lines = whole_files.read_json(path)
    try:
        text = comparison_page(
            folder.resolve().name, lines, _reference(folder, lines), importlib.metadata.version("sptune")
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: is damaged, or is not what a comparison writes ({type(error).__name__}: {error}); make the same "
            "comparison again, which does not repeat its runs."
        ) from None
    whole_files.write_text(folder / REPORT_FILE, text)
    return folder / REPORT_FILE


def _reference(folder: Path, lines: Any) -> str:
    """The method that differences are to: what study.yaml says, or the first, which it is by default."""
    study = folder / STUDY_FILE
    said = read_config(study).get("against") if study.exists() else None
    return str(said or lines[0]["method"])
