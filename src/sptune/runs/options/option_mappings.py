"""Options as mappings, such as the content of a YAML file: nesting, old names, and one mapping over another."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from sptune.errors import InputError
from sptune.prompt_config import (
    DEFAULT_BOTTLENECK_DIM,
    GENERATION_BOTTLENECK_DIM,
    GENERATORS,
    PAPER_FIELDS,
    PREPEND_DEFAULTS,
    PromptConfig,
)
from sptune.search.search_config import DEFAULT_SEARCHER, SearchConfig
from sptune.search.searchers import SEARCHERS
from sptune.whole_files import expanded

Config = TypeVar("Config", PromptConfig, SearchConfig)

# Old names by which options go for one more version.
RENAMED = {
    "data": "dataset",
    "data_config": "dataset_config",
    "head_baseline": "linear_probe",
    "prefix_cache": "activation_cache",
    "prefix_cache_memory": "activation_cache_memory",
    "prefix_cache_dtype": "activation_cache_dtype",
}

# Options that may name a local file or folder: of data, of whatever a run reads, and all of them.
DATA_PATHS = ("train_file", "validation_file", "test_file", "dataset")
INPUT_PATHS = ("model", "gguf_file", *DATA_PATHS)
PATHS = (*INPUT_PATHS, "output_dir")

# Groups of options that a YAML file may nest.
NESTED = ("prompts", "search")

PROMPT_FIELDS = tuple(one.name for one in dataclasses.fields(PromptConfig))
# The seed of a search is that of its run.
SEARCH_FIELDS = tuple(one.name for one in dataclasses.fields(SearchConfig) if one.name != "seed")

# What config.yaml holds besides options: records of the run, not read back.
GIVEN = "given"  # the names of the options that were asked for; the others are defaults
RECORDS = ("command", "processes", "versions", "data_files", GIVEN)

# Options that exclude each other.
LENGTHS = ("epochs", "max_steps")
CRITERIA = ("num_prompt_layers", "threshold", "parameter_budget")
# Options that have no effect with a kind of task.
OF_OTHER_KINDS = {"classifier": ("template", "label_words"), "verbalizer": ("head_pooling", "head_learning_rate")}
# On what the default of an option depends.
BACKBONE, DATA = ("model", "gguf_file"), ("task", "train_file", "dataset", "dataset_config")
PROMPTS, STEPS = ("preset", "placement"), ("batch_size", "gradient_accumulation_steps", "few_shot")
SPLITS = ("validation_file", "test_file")  # what is not given is split off from the training data
KIND = (*BACKBONE, *DATA, "template", "task_kind")
DEPENDS_ON = {
    **dict.fromkeys(SEARCH_FIELDS, ("preset", "searcher")),
    **dict.fromkeys((*PREPEND_DEFAULTS, "generator"), PROMPTS),
    "model": ("gguf_file",),
    "placement": ("preset",),
    "searcher": ("preset",),
    "bottleneck_dim": (*PROMPTS, "generator", "task_kind"),
    "candidate_layers": (*PROMPTS, *BACKBONE, "searcher"),
    "num_prompt_layers": (*PROMPTS, *BACKBONE, "searcher", "candidate_layers"),
    "search_steps": ("preset", "searcher", *LENGTHS, *STEPS, *DATA, *SPLITS),
    "learning_rate": (*PROMPTS, "generator"),
    "max_steps": ("epochs", *STEPS, *DATA, *SPLITS),
    "max_length": BACKBONE,
    "head_pooling": KIND,
    "head_learning_rate": (*KIND, "head_pooling"),
    "task_kind": KIND,
    **dict.fromkeys(("text_columns", "label_column"), (*DATA, "template", "task_kind")),
    **dict.fromkeys(("prompt_column", "completion_column"), (*DATA, "task_kind", "messages_column")),
    "messages_column": (*DATA, "task_kind", "prompt_column", "completion_column"),
    **dict.fromkeys(("max_new_tokens", "generated_examples", "label_threshold", "label_separator"), ("task_kind",)),
}
# Options of the activation cache.
CACHE_OPTIONS = ("activation_cache_memory", "activation_cache_dtype")


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same options without old names, and with the user's folder for "~" in paths.

    Raises:
        InputError: an option is given by both names.
    """
    renamed = {}
    for name, value in values.items():
        new = RENAMED.get(name, name)
        if new != name and new in values:
            raise InputError(f"{name!r} is the old name of {new!r}; leave {name!r} out.")
        if new != name and "versions" not in values:  # a run wrote it
            warnings.warn(f"The option {name!r} is now {new!r}; the old name will be removed.", FutureWarning, 3)
        renamed[new] = str(expanded(value)) if new in PATHS and str(value).startswith("~") else value
    return renamed


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a file without nesting and old names.

    Raises:
        InputError: an option is given twice, or a group holds no options.
    """
    flat = {name: value for name, value in values.items() if name not in NESTED}
    for group, names in zip(NESTED, (PROMPT_FIELDS, SEARCH_FIELDS), strict=True):
        nested = values.get(group)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            flat[group] = nested  # a PromptConfig or a SearchConfig
            continue
        for name, value in nested.items():
            if name not in names:
                raise InputError(f"{group}: {name!r} is not an option of it; it takes {', '.join(names)}.")
            if name in flat:
                raise InputError(f"{name!r} is given both in {group} and beside it; leave one out.")
            flat[name] = value
    return with_new_names(flat)


def without_records(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat options of a file without what a run writes that no user asks for.

    These are records, and options without an effect, which earlier versions took.
    """
    kept = {name: value for name, value in values.items() if name not in RECORDS}
    if "versions" not in values:
        return kept
    if kept.get("placement") is None:
        kept["placement"] = "prepend"  # it is from before there was another
    unused = [*OF_OTHER_KINDS.get(str(kept.get("task_kind")), ())]
    if not _trains(kept.get("searcher")):
        unused.append("search_steps")
    if not kept.get("dataset"):
        unused.append("dataset_config")
    if os.path.isabs(str(kept.get("model"))):
        unused.append("revision")
    return {name: value for name, value in kept.items() if name not in unused}


def default_bottleneck_dim(options: Mapping[str, Any]) -> int:
    """The width r that the prompts of a run with these options have if none is given."""
    usual = PAPER_FIELDS["placement"] if options.get("preset") == "paper" else "add"
    placement = str(options.get("placement") or usual)
    bottleneck = (options.get("generator") or "bottleneck") == "bottleneck"
    if placement == "add" and bottleneck and options.get("task_kind") == "generate":
        return GENERATION_BOTTLENECK_DIM
    return DEFAULT_BOTTLENECK_DIM.get(placement, 0)


def _trains(searcher: Any) -> bool:
    """Whether a searcher may train networks; one that is unknown is refused elsewhere."""
    return str(searcher) not in SEARCHERS or SEARCHERS[str(searcher)].trained


def checked_group(values: Mapping[str, Any], group: str, kind: type[Config]) -> Config:
    """The options of a group.

    Raises:
        InputError: it is something else.
    """
    given = values[group]
    if not isinstance(given, kind):
        raise InputError(
            f"{group}={given!r} holds no options; give a {kind.__name__}, or in a YAML file write the options below "
            f"{group!r}, one 'name: value' a line."
        )
    return given


def merged(written: Mapping[str, Any], given: Mapping[str, Any], *, resumes: bool = False) -> dict[str, Any]:
    """The options of a file, replaced by those that are given beside it, without those that these exclude.

    Of a run's config.yaml the defaults that depend on an option that is now another go, too, so that they are chosen
    anew; see `asked_for`.

    Args:
        written: options by name, such as those of a run's config.yaml.
        given: options by name.
        resumes: the file is that of the run that goes on, with all that it chose.
    """
    written, given = flattened(written), flattened(given)
    check_groups(given)
    given = spelled_out(given)
    said = {name: value for name, value in given.items() if value is not None and name != GIVEN}
    dropped, asked = _excluded(written, said), asked_for(written)
    names: dict[str, Any] = {} if asked is None else {GIVEN: sorted(asked)}
    if asked is not None and not resumes:
        changed = {name for name, value in said.items() if not _is_same(name, value, written.get(name))}
        dropped |= {name for name, on in DEPENDS_ON.items() if name not in asked and not changed.isdisjoint(on)}
        names = {GIVEN: sorted(asked - dropped | said.keys())}
    kept = {name: value for name, value in without_records(written).items() if name not in dropped}
    return {**kept, **names, **given}


def _is_same(name: str, value: Any, written: Any) -> bool:
    """Whether an option has the value that a file has; a path is also known by another spelling."""
    paths = name in PATHS and isinstance(value, str) and isinstance(written, str)
    return value == written or (paths and os.path.abspath(value) == os.path.abspath(written))


def asked_for(written: Mapping[str, Any]) -> set[str] | None:
    """The names of the options that the user of a run asked for; None where no run wrote these options.

    Args:
        written: the content of the run's config.yaml. Those of earlier versions have no such record; what has its
            usual value there counts as not asked for, as far as that is known.
    """
    names = written.get(GIVEN)
    if isinstance(names, list):
        asked = {name for name in names if isinstance(name, str)}
        return asked | {"max_steps"} if "epochs" in asked else asked  # the file has the steps of these epochs
    if "versions" not in written:
        return None
    usual = {
        **PREPEND_DEFAULTS,
        "placement": PromptConfig().placement,
        "generator": GENERATORS.get(str(written.get("placement") or "prepend"), ("",))[0],
        "bottleneck_dim": default_bottleneck_dim(without_records(written)),
        "searcher": DEFAULT_SEARCHER,
        "selection": SearchConfig().criterion,
    }
    return {name for name, value in written.items() if value is not None and value != usual.get(name)}


def check_groups(given: Mapping[str, Any]) -> None:
    """Refuse a PromptConfig or a SearchConfig beside what it would silently replace, or be replaced by.

    Raises:
        InputError: a preset beside it, or a seed of the search that is not that of the run.
    """
    for group in (name for name in NESTED if given.get(name) is not None):
        if given.get("preset") is not None:
            raise InputError(
                f"preset={given['preset']!r} and {group} exclude each other; give the options of {group} by their own "
                "names."
            )
        seed = getattr(given[group], "seed", 0)
        if seed not in (0, given.get("seed")):
            raise InputError(f"{group}.seed={seed}: a search has the seed of its run; give seed={seed}.")


def spelled_out(given: Mapping[str, Any], *, beyond_defaults: bool = False) -> dict[str, Any]:
    """The same with the fields of a PromptConfig or a SearchConfig by name.

    Args:
        given: options by name.
        beyond_defaults: only the fields that have another value than a configuration made without it.
    """
    fields: dict[str, Any] = {}
    for group, names in zip(NESTED, (PROMPT_FIELDS, SEARCH_FIELDS), strict=True):
        whole = given.get(group)
        if isinstance(whole, PromptConfig | SearchConfig):
            usual = type(whole)() if beyond_defaults else None
            found = {name: getattr(whole, name, None) for name in names}
            fields |= {name: value for name, value in found.items() if value != getattr(usual, name, None)}
    kept = {name: value for name, value in given.items() if not (name in NESTED and fields)}
    return {**fields, **kept}


def _excluded(written: Mapping[str, Any], said: Mapping[str, Any]) -> set[str]:
    """The options of a file that have no effect beside those that are said."""
    excluded = {name for ways in (LENGTHS, CRITERIA) if not said.keys().isdisjoint(ways) for name in ways}
    excluded.update(OF_OTHER_KINDS.get(str(said.get("task_kind")), ()))
    if not _trains(said.get("searcher")):
        excluded.add("search_steps")
    if said.get("activation_cache") is False and not said.get("resume"):  # a run that is resumed keeps its dtype
        excluded.update(CACHE_OPTIONS)
    if said.get("model", written.get("model")) != written.get("model"):
        excluded.add("revision")
        excluded.add("gguf_file")
    if said.get("placement", written.get("placement")) != written.get("placement"):
        excluded.add("preset")
    return excluded
