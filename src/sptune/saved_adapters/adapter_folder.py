"""Reading the folder of an adapter that a run wrote, without its weights and its backbone; `run_results` writes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sptune.errors import InputError, shortened
from sptune.modeling.loading import CLASSIFIER, BackboneSpec, longest_input
from sptune.runs.output_folder import ADAPTER_FOLDER, TASK_FILE
from sptune.runs.task_kinds import AnyTask, task_from_document
from sptune.saved_adapters.adapter_files import WRONG_VALUES, find_folder, read_config, read_sizes, read_task_document
from sptune.whole_files import expanded


@dataclass(frozen=True)
class AdapterFolder:
    """The checked content of an adapter folder, except for its weights.

    Attributes:
        path: the folder itself, also where the run's folder around it was named.
        config: the content of adapter_config.json.
        task: the task it was trained for.
        backbone: the backbone it was trained on.
        max_length: the maximum number of tokens of an input.
        sizes: the number of elements of each tensor, from the header of the weights file.
        max_new_tokens: the maximum number of tokens of a text that it writes; None if it predicts classes.
    """

    path: Path
    config: dict[str, Any]
    task: AnyTask
    backbone: BackboneSpec
    max_length: int
    sizes: dict[str, int]
    max_new_tokens: int | None = None

    @classmethod
    def read(cls, adapter: str | Path) -> AdapterFolder:
        """Read an adapter folder, or the run's folder around it.

        Raises:
            InputError: it is not an adapter that a run of sptune wrote, or one of its files is broken.
        """
        folder = find_folder(adapter)
        config = read_config(folder)
        task, backbone, max_length, max_new_tokens = _read_task(folder)
        return cls(folder, config, task, backbone, max_length, read_sizes(folder), max_new_tokens)

    def input_length(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
        """The maximum number of tokens of an input, which the backbone takes.

        Args:
            config: of the backbone.
            tokenizer: of the backbone.

        Raises:
            InputError: it is more than the backbone takes.
        """
        try:
            return longest_input(config, tokenizer, self.max_length)
        except InputError as error:
            raise InputError(f"{self.path / TASK_FILE}: {error}") from None


def _read_task(folder: Path) -> tuple[AnyTask, BackboneSpec, int, int | None]:
    document = read_task_document(folder)
    try:
        task, backbone = task_from_document(document["task"]), BackboneSpec.from_dict(document["backbone"])
        length, new_tokens = _count(document, "max_length"), document.get("max_new_tokens")
        if backbone.head == CLASSIFIER and len(backbone.labels) != len(getattr(task, "score_names", ())):
            raise InputError("the classes of the task do not fit those of the backbone's head.")
        return task, backbone, length, None if new_tokens is None else _count(document, "max_new_tokens")
    except InputError as error:
        raise InputError(f"{folder / TASK_FILE}: {error}") from None
    except WRONG_VALUES as error:
        raise InputError(
            f"{folder / TASK_FILE}: a value is missing or has the wrong type ({error}); use an adapter that sptune fit "
            "or train wrote."
        ) from None


def _count(document: Mapping[str, Any], name: str) -> int:
    """A whole number of at least 1."""
    value = document[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={shortened(value)}")
    if value < 1:
        raise InputError(f"{name}={shortened(value)} is not allowed; it is a whole number of at least 1.")
    return value


def named_folders(adapters: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Adapter folders by the names that data and requests use for them.

    Args:
        adapters: one or several folders; a mapping from names to folders; or texts such as "films=runs/17". Without a
            name, an adapter has that of its run's folder: runs/films and runs/films/adapter are "films".

    Raises:
        InputError: no adapter, or two of the same name.
    """
    if isinstance(adapters, Mapping):
        pairs = [(name, expanded(folder)) for name, folder in adapters.items()]
    else:
        given = [adapters] if isinstance(adapters, str | Path) else adapters
        pairs = [_named_folder(str(one)) for one in given]
    if not pairs:
        raise InputError("No adapter is named; give at least one adapter folder that a run wrote.")
    named: dict[str, Path] = {}
    for name, folder in pairs:
        if not name.strip():
            raise InputError(f"{folder}: its name is empty; write for example films={folder}.")
        if name in named:
            raise InputError(
                f"{named[name]} and {folder} are both named {name!r}; give each a name of its own, such as "
                f"{name}2={folder}."
            )
        named[name] = folder
    return named


def _named_folder(text: str) -> tuple[str, Path]:
    if "\0" in text:
        raise InputError(f"{shortened(text)} is not a path; name an adapter folder that a run wrote.")
    text = os.path.expanduser(text)
    name, sign, folder = text.partition("=")
    if sign and not os.path.exists(text):
        return name, expanded(folder)
    place = Path(text).resolve()
    return (place.parent.name if place.name == ADAPTER_FOLDER else place.name), Path(text)


def read_all(folders: Mapping[str, str | Path]) -> dict[str, AdapterFolder]:
    """Read adapter folders that are to share a backbone.

    Raises:
        InputError: one is broken, or was trained on another backbone than the first.
    """
    adapters = {name: AdapterFolder.read(folder) for name, folder in folders.items()}
    for other in adapters.values():
        check_same_backbone(next(iter(adapters.values())), other)
    return adapters


def check_same_backbone(first: AdapterFolder, other: AdapterFolder) -> None:
    """Refuse an adapter that was trained on another backbone, or with another kind of head.

    Raises:
        InputError: the two cannot share a model.
    """
    # What a classifier predicts belongs to the adapter, which brings its own head.
    one, two = (replace(each.backbone, labels=(), problem_type=None) for each in (first, other))
    if one == two:
        return
    before, after = one.to_dict(), two.to_dict()
    differing = [name for name in before if before[name] != after[name]]
    raise InputError(
        f"{other.path} was trained on another backbone than {first.path} "
        f"({'; '.join(f'{name}: {after[name]!r}, not {before[name]!r}' for name in differing)}). Adapters that are "
        "loaded together share one backbone; use this one by itself, or train it on the same backbone."
    )
