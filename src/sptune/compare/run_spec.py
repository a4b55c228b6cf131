"""`RunSpec`: one run of a study, its options, and the identity by which its row is found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from sptune.compare.methods import LINEAR_PROBE, PROMPTS, Method
from sptune.errors import InputError
from sptune.runs import output_folder as outputs
from sptune.runs.options.option_mappings import INPUT_PATHS, RENAMED, SEARCH_FIELDS
from sptune.runs.options.run_options import PROMPT_OPTIONS, SEARCH_OPTIONS, RunOptions, all_options

# The names by which rows know options and kinds of methods that have been renamed since.
ROW_NAMES = {new: old for old, new in RENAMED.items()}
ROW_KINDS = {LINEAR_PROBE: "head"}

Row = dict[str, Any]


@dataclass(frozen=True)
class RunSpec:
    """One training: a method with one learning rate on one task with one seed.

    Attributes:
        task: the task's name in the study.
        name: the method's name in the study.
        method: the method.
        seed: of the data, the initialization and the order.
        learning_rate: of what the method trains.
        tuning: whether it only helps to choose the learning rate; the test data are not looked at then.
        options: of the run, as `RunOptions` takes them.
    """

    task: str
    name: str
    method: Method
    seed: int
    learning_rate: float
    tuning: bool
    options: Mapping[str, Any]

    @cached_property
    def id(self) -> str:
        """The hash of all that says what the run is: of files and local backbones the content, not where they are.

        Names in the study are no part of it, nor what is left open (of that, later versions may choose otherwise), nor
        options of prompts or of a search where there is none, nor on what it is computed and whether with autocast:
        rows say that. It is of the files as they are when it is asked for first.
        """
        options = self.run_options("")
        given = self.lasting_options()
        del given["bf16"]
        content = {key: _content(given.pop(key), nested=key == "dataset") for key in INPUT_PATHS if key in given}
        given["activation_cache"] = options.activation_cache
        about = {
            "kind": ROW_KINDS.get(self.method.kind, self.method.kind),
            "settings": {} if self.method.kind == PROMPTS else dict(self.method.settings),  # they are options
            "tuning": self.tuning,
            "content": {ROW_NAMES.get(key, key): value for key, value in content.items()},
            "options": {ROW_NAMES.get(key, key): value for key, value in given.items()},
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def run_options(self, folder: str | Path) -> RunOptions:
        """The options of the run.

        Raises:
            InputError: they cannot be right.
        """
        prompts = self.method.settings if self.method.kind == PROMPTS else {"prompt_layers": "middle"}
        varied: dict[str, Any] = {"seed": self.seed, "learning_rate": self.learning_rate, "linear_probe": False}
        if self.method.kind == LINEAR_PROBE:
            varied["head_learning_rate"] = self.learning_rate
        where = f"{self.name} on {self.task}"
        return RunOptions.from_mapping({**self.options, **prompts, **varied, "output_dir": str(folder)}, where)

    def lasting_options(self) -> dict[str, Any]:
        """The options that say what the run is: those that are given, and that its method goes by."""
        without: Collection[str] = PROMPT_OPTIONS
        if self.method.kind == PROMPTS:
            without = () if self.method.searches else SEARCH_OPTIONS
        options = self.run_options("").lasting()
        # Rows name what a study leaves to the defaults of a search no more than its layers.
        options = {key: value for key, value in options.items() if key not in SEARCH_FIELDS or key == "searcher"}
        if self.method.kind == PROMPTS:
            options |= {key: all_options()[key].convert(value) for key, value in self.method.settings.items()}
        if options["placement"] == "prepend":
            del options["placement"]  # rows from before there was another say nothing of it
        return {key: value for key, value in options.items() if value is not None and key not in without}

    def check_files(self) -> None:
        """Refuse files that are not what they were when the run's identity was told.

        Raises:
            InputError: they are not.
        """
        if dataclasses.replace(self).id != self.id:
            raise InputError(
                f"{self.task}: the data or the backbone were changed while the study was at work; call the same "
                "command again for a comparison on what is there now."
            )


def _content(place: str, *, nested: bool) -> Any:
    """What a file or a local folder holds; the name itself where it is a hub id, or nothing that is there.

    Args:
        place: file, folder or hub id.
        nested: whether what lies in folders inside of a folder counts, as it does for data and not for a backbone.
            Hidden files and folders, such as .git and .DS_Store, never count: neither data nor backbones are in them.
    """
    path = Path(place)
    if path.is_file():
        return _digest_of_version(place, path.stat().st_mtime_ns)
    if path.is_dir():
        files = sorted(file for file in (path.rglob("*") if nested else path.iterdir()) if file.is_file())
        names = {file: file.relative_to(path) for file in files}
        shown = [file for file, name in names.items() if not any(part.startswith(".") for part in name.parts)]
        return {names[file].as_posix(): _content(str(file), nested=nested) for file in shown}
    return place


@lru_cache
def _digest_of_version(file: str, modified: int) -> str:
    return outputs.file_digest(Path(file))
