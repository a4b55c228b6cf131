"""`RunOptions`: reads and checks the options of a run, and the table of all of them."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.prompt_config import PAPER_FIELDS, PromptConfig
from sptune.runs.options.option_checks import check_combinations, check_ranges
from sptune.runs.options.option_fields import ALL, SEARCHING, OptionFields
from sptune.runs.options.option_mappings import (
    NESTED,
    PROMPT_FIELDS,
    RECORDS,
    RENAMED,
    SEARCH_FIELDS,
    asked_for,
    check_groups,
    checked_group,
    default_bottleneck_dim,
    flattened,
    spelled_out,
    with_new_names,
    without_records,
)
from sptune.runs.options.option_types import Option
from sptune.search.search_config import SearchConfig
from sptune.search.searchers import SEARCHERS

# Options of how a run is done, not of what it is: they may change when a run is resumed.
CONDUCT = (
    "report_to",
    "push_to_hub",
    "hub_private",
    "output_dir",
    "resume",
    "overwrite",
    "keep_checkpoints",
    "activation_cache",
    "activation_cache_memory",
)
# Where options given one by one come from, in errors.
ORIGIN = "options"

PROMPT_GROUPS = ("Prompts", "Search")


@dataclass(init=False)
class RunOptions(OptionFields):
    """The options of `fit`, `search` and `train`; None means that the run chooses, and config.yaml says what it chose.

    The fields of `prompts` and `search` may be given by their own names: `RunOptions(bottleneck_dim=4)` is
    `RunOptions(prompts=PromptConfig(bottleneck_dim=4))`.

    Attributes:
        given: the names of the options that the user asked for; the others are defaults.

    Raises:
        InputError: an unknown option, a value of the wrong type or outside its choices, or options that exclude
            each other.
    """

    def __init__(self, **values: Any) -> None:
        values = with_new_names(values)
        RunOptions.check_names(values, ORIGIN)
        options = all_options()
        values = {name: options[name].convert(value) if name in options else value for name, value in values.items()}
        for one in dataclasses.fields(self):
            if one.name in NESTED:
                continue
            default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
            setattr(self, one.name, values.get(one.name, default))
            options[one.name].check_choice(getattr(self, one.name))
        named = spelled_out(values, beyond_defaults=True)
        self.given = frozenset(name for name, value in named.items() if value is not None and name not in NESTED)
        self.prompts = self._prompts_of(values)
        self.search = self._search_of(values)
        check_ranges(self)
        check_combinations(self)

    def _prompts_of(self, values: Mapping[str, Any]) -> PromptConfig:
        given = {name: values[name] for name in PROMPT_FIELDS if values.get(name) is not None}
        if given.get("prompt_layers", "search") != "search":
            given.pop("candidate_layers", None)  # a file of a run that searched names them
        if values.get("prompts") is not None:
            return dataclasses.replace(checked_group(values, "prompts", PromptConfig), **given)
        given = {**(PAPER_FIELDS if self.preset == "paper" else {}), **given}
        width = default_bottleneck_dim({**given, "task_kind": self.task_kind})
        return PromptConfig(**{"bottleneck_dim": width or None, **given})

    def _search_of(self, values: Mapping[str, Any]) -> SearchConfig:
        given = {name: values[name] for name in SEARCH_FIELDS if values.get(name) is not None}
        if values.get("search") is not None:
            return dataclasses.replace(checked_group(values, "search", SearchConfig), **given, seed=self.seed)
        preset = {"searcher": SearchConfig.paper().searcher} if self.preset == "paper" else {}
        return SearchConfig(**{**preset, **given, "seed": self.seed})

    @property
    def from_hub(self) -> bool:
        """Whether the data are a benchmark task's as the hub has them, with the hub's columns and classes."""
        return self.task is not None and not self.train_file and not self.text_columns

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> RunOptions:
        """Options from a mapping such as the content of a YAML file, which may nest those of `prompts` and `search`.

        Args:
            values: the options by name.
            where: named in errors.

        Raises:
            InputError: a key that is no option, or what the constructor raises.
        """
        try:
            values = flattened(values)
            cls.check_names(values, where)
            check_groups(values)
            made = cls(**without_records(values))
            asked = asked_for(values)
            made.given = made.given if asked is None else made.given & asked
            return made
        except InputError as error:
            message = str(error)
            raise InputError(message if message.startswith(f"{where}: ") else f"{where}: {message}") from None

    @classmethod
    def check_names(cls, values: Iterable[str], where: str) -> None:
        """Refuse what is no option's name; `where` is named in errors.

        Raises:
            InputError: which one, and what it may have been meant to be.
        """
        names = list(all_options())
        for key in values:
            if key not in (*names, *NESTED, *RECORDS, *RENAMED):
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else f" Options are: {', '.join(names)}."
                raise InputError(f"{where}: {key!r} is not an option.{hint}")

    def lasting(self) -> dict[str, Any]:
        """The options of what the run is, flat, as plain values for config.yaml.

        Layers that are searched for are None, and so are settings that have no effect with the searcher.
        """
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name not in NESTED}
        prompts = {name: getattr(self.prompts, name) for name in PROMPT_FIELDS}
        if self.prompts.searching:
            prompts["prompt_layers"] = None
        search = {name: getattr(self.search, name) for name in SEARCH_FIELDS}
        settings = {name for searcher in SEARCHERS.values() for name in searcher.settings}
        unused = settings - set(SEARCHERS[self.search.searcher].settings)
        search |= dict.fromkeys(unused)
        flat = {**own, **prompts, **search}
        return {name: flat[name] for name in all_options() if name not in CONDUCT}

    def folder(self) -> Path:
        """The output folder.

        Raises:
            InputError: none was given.
        """
        if not self.output_dir:
            raise InputError("output_dir is missing: name a folder for what the run writes (output_dir=FOLDER).")
        return Path(self.output_dir)


# What differs from the other options of the prompts.
_GROUPS = {"layers_path": "Backbone"}
_VERBS = {"prompt_layers": ("train",), "candidate_layers": SEARCHING, "visibility": SEARCHING}


@functools.cache
def all_options() -> dict[str, Option]:
    """The options by name, those of the prompts and the search among them."""
    options: dict[str, Option] = {}
    hints = typing.get_type_hints(RunOptions)
    for one in dataclasses.fields(RunOptions):
        if one.name == "prompts":
            options |= _options_of(PromptConfig, PROMPT_FIELDS, "Prompts", ALL)
        elif one.name == "search":
            options |= _options_of(SearchConfig, SEARCH_FIELDS, "Search", SEARCHING)
        else:
            default = None if one.default is dataclasses.MISSING else one.default
            about = {**one.metadata, "flag": one.metadata["flag"] or one.name.replace("_", "-")}
            options[one.name] = Option(name=one.name, hint=hints[one.name], default=default, **about)
    return options


def _options_of(config: Any, names: tuple[str, ...], group: str, verbs: tuple[str, ...]) -> dict[str, Option]:
    hints = typing.get_type_hints(config)
    return {
        one.name: Option(
            one.name,
            hints[one.name] | None,  # None is what a file says of what is left open
            None if one.name == "prompt_layers" else one.default,
            one.metadata["help"],
            _GROUPS.get(one.name, group),
            _VERBS.get(one.name, verbs),
            one.metadata.get("choices"),
            one.name.replace("_", "-"),
        )
        for one in dataclasses.fields(config)
        if one.name in names
    }


# What a comparison varies from run to run, besides the options of prompts and their search.
VARIED = ("learning_rate", "seed", "linear_probe")
PROMPT_OPTIONS = tuple(name for name, one in all_options().items() if one.group in PROMPT_GROUPS)
# The options that have an effect only with a search.
SEARCH_OPTIONS = tuple(name for name, one in all_options().items() if one.verbs == SEARCHING)
# What all methods of a comparison share: backbone, data, and how long and how is trained.
SHARED_OPTIONS = tuple(
    name for name, one in all_options().items() if one.group in ("Backbone", "Data", "Training") and name not in VARIED
)
