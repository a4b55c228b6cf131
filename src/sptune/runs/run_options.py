"""`RunOptions`: everything a run can be told, written once for Python, YAML files and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.prompt_config import (
    DEFAULT_BOTTLENECK_DIM,
    DEFAULT_NUM_PROMPT_LAYERS,
    GENERATORS,
    PAPER_FIELDS,
    PLACEMENTS,
    PREPEND_DEFAULTS,
    PromptConfig,
)
from sptune.search.search_config import (
    DEFAULT_SEARCHER,
    SearchConfig,
    check_settings,
)
from sptune.search.searchers import FIXED_SETTINGS, MIN_EXAMPLES, SEARCHERS, SELECTION_CRITERIA

DTYPES = ("float32", "bfloat16", "float16")

# Options that may name a local file or folder to read.
PLACES = ("model", "gguf_file", "train_file", "validation_file", "test_file", "data")
# Options that say how to go about a run, not what the run is: they may change when a run is continued.
CONDUCT = ("output_dir", "resume", "overwrite", "keep_checkpoints", "prefix_cache", "prefix_cache_memory")

# Where options come from that were given one by one, in errors.
ORIGIN = "options"

# What config.yaml holds besides options: records of the run, not read back.
RECORDS = ("command", "versions", "data_files")

# Ways to say the same thing, of which one is given.
LENGTHS = ("epochs", "max_steps")
SELECTIONS = ("num_prompt_layers", "threshold", "parameter_budget")


ALL = ("fit", "search", "train")
SEARCHING = ("fit", "search")
TRAINING = ("fit", "train")
PROMPT_GROUPS = ("Prompts", "Search")


def _about(
    help: str,
    group: str,
    *,
    verbs: tuple[str, ...] = ALL,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
) -> dict[str, Any]:
    """What the command line must know of an option: its help, group, the verbs that take it, and its flag."""
    return {"help": help, "group": group, "verbs": verbs, "choices": choices, "flag": flag}


@dataclass
class RunOptions:
    """The options of `fit`, `search` and `train`; None means that the run chooses, and config.yaml says what it chose.

    Raises:
        InputError: an unknown option, a value of the wrong type or outside its choices, or options that exclude
            each other.
    """

    model: str | None = field(default=None, metadata=_about("Backbone: a hub id or a local folder.", "Backbone"))
    gguf_file: str | None = field(
        default=None,
        metadata=_about("Backbone as a GGUF file: its name inside --model, or the path of a local file.", "Backbone"),
    )
    revision: str | None = field(
        default=None, metadata=_about("Branch, tag or commit of a backbone from the hub.", "Backbone")
    )
    dtype: str = field(
        default="float32", metadata=_about("Number format of the frozen backbone.", "Backbone", choices=DTYPES)
    )
    head_pooling: str | None = field(
        default=None,
        metadata=_about(
            "What a classifier's head sees: 'mean', the masked mean of the text, or 'own', the backbone's own pooling. "
            "Default: mean for encoders, own for causal models.",
            "Backbone",
            choices=("mean", "own"),
        ),
    )
    layers_path: str | None = field(
        default=None,
        metadata=_about("Dotted path of the list of blocks, for a model family that sptune does not know.", "Backbone"),
    )

    task: str | None = field(
        default=None, metadata=_about("A benchmark task (see 'sptune tasks'); leave it out for your own data.", "Data")
    )
    task_kind: str | None = field(
        default=None,
        metadata=_about(
            "'verbalizer' (label words read by the language-model head) or 'classifier' (a trained head). "
            "Default: verbalizer for a task with a template on a language model, else classifier.",
            "Data",
            choices=("verbalizer", "classifier"),
        ),
    )
    train_file: str | None = field(
        default=None, metadata=_about("Training data: .jsonl, .csv, .tsv or .parquet.", "Data")
    )
    validation_file: str | None = field(
        default=None, metadata=_about("Validation data; default: carved out of the training data.", "Data")
    )
    test_file: str | None = field(
        default=None, metadata=_about("Test data; default: carved out of the training data.", "Data")
    )
    data: str | None = field(
        default=None, metadata=_about("Instead of files: a data set, by its hub id, local folder or file.", "Data")
    )
    data_config: str | None = field(
        default=None, metadata=_about("Configuration of that data set, such as a GLUE task.", "Data")
    )
    text_columns: list[str] = field(
        default_factory=list,
        metadata=_about(
            "Column with the text; give it twice for pairs. Default: the task's, or 'text'.", "Data", flag="text-column"
        ),
    )
    label_column: str | None = field(
        default=None, metadata=_about("Column with the label. Default: the task's, or 'label'.", "Data")
    )
    labels: list[str] = field(
        default_factory=list,
        metadata=_about(
            "A class, once for each, in the order of the task's. Default: the task's, or those in the data.",
            "Data",
            flag="label",
        ),
    )
    template: str | None = field(
        default=None,
        metadata=_about(
            "Turns your texts into a cloze, such as '{text} . It was [MASK] .'; needs --label-word.", "Data"
        ),
    )
    label_words: dict[str, str] = field(
        default_factory=dict,
        metadata=_about(
            "Answer word of a class, such as 'positive=great'; once for each class.", "Data", flag="label-word"
        ),
    )
    few_shot: int | None = field(
        default=None, metadata=_about("Train on this many examples only, drawn in proportion to the classes.", "Data")
    )
    max_length: int | None = field(
        default=None,
        metadata=_about(
            "Longest input in tokens; longer texts are cut. Default: what the backbone takes, at most 512.", "Data"
        ),
    )

    prompt_layers: str | list[int] | None = field(
        default=None,
        metadata=_about("Layers to prompt: indices such as 3,5, or all, middle, first.", "Prompts", verbs=("train",)),
    )
    candidate_layers: list[int] | None = field(
        default=None,
        metadata=_about(
            "Layers the search may use, such as 2,3,4. Default: at most ten, without the lowest sixth (and the highest, if prompts are added).",
            "Prompts",
            verbs=SEARCHING,
        ),
    )
    preset: str | None = field(
        default=None,
        metadata=_about(
            "'paper': the paper's own system, prompts in front of the text and a search by SPT-DARTS, where nothing "
            "else is given.",
            "Prompts",
            choices=("paper",),
        ),
    )
    placement: str | None = field(
        default=None,
        metadata=_about(
            "'add' a vector to each token at a prompt layer (default), or 'prepend' prompts to the text.",
            "Prompts",
            choices=PLACEMENTS,
        ),
    )
    generator: str | None = field(
        default=None,
        metadata=_about(
            "What makes the prompts. add: bottleneck (default), static; prepend: appg (default), mppg, npg, "
            "attention, static.",
            "Prompts",
            choices=tuple(dict.fromkeys(name for kinds in GENERATORS.values() for name in kinds)),
        ),
    )
    bottleneck_dim: int | None = field(
        default=None,
        metadata=_about(
            "Width between a generator's two projections (r). "
            f"Default: {', '.join(f'{name} {r}' for name, r in DEFAULT_BOTTLENECK_DIM.items())}.",
            "Prompts",
        ),
    )
    projection: str = field(
        default="linear", metadata=_about("Projections of the generators.", "Prompts", choices=("linear", "phm"))
    )
    phm_dim: int = field(default=4, metadata=_about("n of PHM projections: about 1/n of the parameters.", "Prompts"))
    activation: str = field(default="relu", metadata=_about("Activation inside a generator.", "Prompts"))
    num_virtual_tokens: int | None = field(
        default=None, metadata=_about("prepend: prompt vectors at a layer (m). Default: 10.", "Prompts")
    )
    residual: bool | None = field(
        default=None,
        metadata=_about(
            "prepend: add what the generator computes to the pooled text states (appg, mppg, attention), so that "
            "training begins with pieces of the text and not with noise. Default: yes.",
            "Prompts",
        ),
    )
    mixing_rate: float | None = field(
        default=None,
        metadata=_about(
            "prepend: share of a new prompt where one came up from below, in (0, 1]. Default: 1.", "Prompts"
        ),
    )
    visibility: str | None = field(
        default=None,
        metadata=_about(
            "prepend: how gates act on attention during the search. Default: gated.",
            "Prompts",
            choices=("gated", "always"),
            verbs=SEARCHING,
        ),
    )

    searcher: str | None = field(
        default=None,
        metadata=_about(
            f"How prompt layers are chosen; auto: fair with {MIN_EXAMPLES} training examples or more, spaced with "
            "fewer.",
            "Search",
            choices=tuple(SEARCHERS),
            verbs=SEARCHING,
        ),
    )
    selection: str | None = field(
        default=None,
        metadata=_about(
            "How layers are selected with the trained supernet. Default: the searcher's own criterion.",
            "Search",
            choices=SELECTION_CRITERIA,
            verbs=SEARCHING,
        ),
    )
    num_prompt_layers: int | None = field(
        default=None,
        metadata=_about(
            "Keep this many layers. Default: "
            f"{', '.join(f'{name} {number}' for name, number in DEFAULT_NUM_PROMPT_LAYERS.items())}.",
            "Search",
            verbs=SEARCHING,
        ),
    )
    threshold: float | None = field(
        default=None,
        metadata=_about(
            "Instead: keep the layers with a gate above this (searchers with gates).", "Search", verbs=SEARCHING
        ),
    )
    parameter_budget: int | None = field(
        default=None,
        metadata=_about("Instead: keep as many layers as fit into this many parameters.", "Search", verbs=SEARCHING),
    )
    search_steps: int | None = field(
        default=None,
        metadata=_about(
            "Optimiser steps of the search. Default: 150, or a quarter of those of the final training if that is less.",
            "Search",
            verbs=SEARCHING,
        ),
    )
    consistency: str | None = field(
        default=None,
        metadata=_about(
            "Architecture consistency (spt_darts): 'kl' of predictions or 'mse' of final states.",
            "Search",
            choices=("kl", "mse"),
            verbs=SEARCHING,
        ),
    )
    consistency_weight: float | None = field(
        default=None, metadata=_about("Weight of the consistency (spt_darts).", "Search", verbs=SEARCHING)
    )
    mask_probability: float | None = field(
        default=None,
        metadata=_about("Probability that a layer is masked in a search step (spt_darts).", "Search", verbs=SEARCHING),
    )
    mixed_level_weight: float | None = field(
        default=None,
        metadata=_about("Weight of the weight half's gradient on the gates (spt_darts).", "Search", verbs=SEARCHING),
    )
    gate_learning_rate: float | None = field(
        default=None, metadata=_about("Learning rate of the gates, where there are any.", "Search", verbs=SEARCHING)
    )
    gate_interval: int | None = field(
        default=None,
        metadata=_about(
            "Move the gates, if any, in every so-many-th step; the others cost half.", "Search", verbs=SEARCHING
        ),
    )

    epochs: float | None = field(
        default=None,
        metadata=_about(
            "Epochs of the final training. Default: 5, at least 150 and at most 2000 steps.", "Training", verbs=TRAINING
        ),
    )
    max_steps: int | None = field(
        default=None,
        metadata=_about("Optimiser steps of the final training, instead of epochs.", "Training", verbs=TRAINING),
    )
    batch_size: int = field(default=16, metadata=_about("Examples a device takes at a time.", "Training"))
    gradient_accumulation_steps: int = field(
        default=1, metadata=_about("Batches that make one optimiser step.", "Training")
    )
    learning_rate: float | None = field(
        default=None,
        metadata=_about("Learning rate of the generators. Default: 5e-3, static prompts 5e-2.", "Training"),
    )
    head_learning_rate: float | None = field(
        default=None,
        metadata=_about("Learning rate of a trained head. Default: 1e-2 on the masked mean, else 1e-3.", "Training"),
    )
    weight_decay: float = field(default=0.01, metadata=_about("AdamW's weight decay.", "Training"))
    bf16: bool = field(
        default=False,
        metadata=_about(
            "Compute in bfloat16 where that is safe (autocast); trained weights stay float32. Left off on CPUs "
            "for which PyTorch has no bfloat16 kernels.",
            "Training",
        ),
    )
    prefix_cache: bool = field(
        default=True,
        metadata=_about(
            "Run the layers below the first prompt layer once for each text, and keep the result.", "Training"
        ),
    )
    prefix_cache_memory: float = field(
        default=4.0, metadata=_about("Keep up to this many GiB of it in memory, more in a file.", "Training")
    )
    prefix_cache_dtype: str | None = field(
        default=None,
        metadata=_about(
            "Number format to keep it in. Default: the backbone's; a shorter one is not exact.",
            "Training",
            choices=DTYPES,
        ),
    )
    gradient_checkpointing: bool = field(
        default=False, metadata=_about("Trade time for memory in the backward pass.", "Training")
    )
    head_baseline: bool = field(
        default=True,
        metadata=_about(
            "Also train the same head alone (verbalizer: zero-shot), and report the gain.", "Training", verbs=TRAINING
        ),
    )
    seed: int = field(default=0, metadata=_about("Seed of sampling, initialisation and training.", "Training"))

    output_dir: str | None = field(
        default=None, metadata=_about("Folder for everything the run writes.", "Output", flag="output")
    )
    resume: bool = field(default=False, metadata=_about("Continue the run that --output holds.", "Output"))
    overwrite: bool = field(default=False, metadata=_about("Replace the run that --output holds.", "Output"))
    keep_checkpoints: bool = field(default=False, metadata=_about("Keep the checkpoints of a finished run.", "Output"))

    def __post_init__(self) -> None:
        hints = _hints()
        for one in dataclasses.fields(self):
            value = _coerce(getattr(self, one.name), hints[one.name])
            if not _fits(value, hints[one.name]):
                listed = f" Write {re.split(r', *', value)}." if _fits([value], hints[one.name]) else ""
                raise InputError(
                    f"{one.name}={value!r} has the wrong type; it takes {_describe(hints[one.name])}.{listed}"
                )
            choices = one.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise InputError(f"{one.name}={value!r} is not allowed; choose one of {', '.join(choices)}.")
            setattr(self, one.name, value)
        self._check_ranges()
        self._settle_prompts()
        self._check_combinations()

    def _settle_prompts(self) -> None:
        """Choose what the placement and the preset leave open, as `SPTConfig` has it."""
        names = ("placement", "generator", "bottleneck_dim", *PREPEND_DEFAULTS)
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.searcher is None:
            self.searcher = SearchConfig.paper().searcher if self.preset == "paper" else DEFAULT_SEARCHER
        preset = PAPER_FIELDS if self.preset == "paper" else {}
        config = PromptConfig(
            projection=self.projection, phm_dim=self.phm_dim, activation=self.activation, **{**preset, **given},
        )  # fmt: skip
        for name in names:
            setattr(self, name, getattr(config, name))

    def _check_ranges(self) -> None:
        for name in (
            "few_shot",
            "max_length",
            "bottleneck_dim",
            "phm_dim",
            "num_prompt_layers",
            "parameter_budget",
            "gate_interval",
            "search_steps",
            "max_steps",
            "batch_size",
            "gradient_accumulation_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} is not allowed; give a whole number of at least 1.")
        for name in ("learning_rate", "head_learning_rate", "gate_learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value} is not allowed; give a number above 0.")
        for name in ("weight_decay", "seed", "consistency_weight", "mixed_level_weight", "prefix_cache_memory"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name}={value} is not allowed; give 0 or more.")

    def _check_combinations(self) -> None:
        if self.resume and self.overwrite:
            raise InputError("resume continues a run and overwrite replaces it; give only one of them.")
        if self.epochs is not None and self.max_steps is not None:
            raise InputError(f"epochs={self.epochs} and max_steps={self.max_steps} say the same thing; give one.")
        if self.data and (self.train_file or self.validation_file or self.test_file):
            raise InputError(
                f"data={self.data!r} brings all its splits; leave out train_file, validation_file and test_file, "
                "or leave out data."
            )
        if self.task and self.template:
            raise InputError(f"task={self.task!r} brings its own template; leave out one of task and template.")
        if self.from_hub:
            own = ("validation_file", "test_file", "data_config", "label_column", "labels")
            given = [name for name in own if getattr(self, name)]
            if given:
                raise InputError(
                    f"{given[0]}={getattr(self, given[0])!r} is of your own data, and task={self.task!r} without a "
                    "train_file takes the hub's; give a train_file too (or data and text_columns), or leave it out."
                )
        if bool(self.template) != bool(self.label_words):
            there, missing = ("template", "label_words") if self.template else ("label_words", "template")
            raise InputError(f"{there} is given without {missing}; a verbalizer needs both, a classifier neither.")
        if isinstance(self.prompt_layers, str) and self.prompt_layers not in FIXED_SETTINGS:
            raise InputError(
                f"prompt_layers={self.prompt_layers!r} is not allowed; give layers such as [3, 5], or one of "
                f"{', '.join(FIXED_SETTINGS)}."
            )
        searcher = self.searcher or DEFAULT_SEARCHER
        if self.visibility == "always" and searcher in SEARCHERS and not SEARCHERS[searcher].relaxed:
            raise InputError(
                f"visibility='always' has no effect with searcher={self.searcher!r}; leave it out, or search with "
                "spt_darts."
            )
        selections = [name for name in SELECTIONS if getattr(self, name) is not None]
        if len(selections) > 1:
            raise InputError(f"{' and '.join(selections)} are different ways to select layers; give one.")
        defaults = {one.name: one.default for one in dataclasses.fields(SearchConfig)}
        # A file that a run wrote names them all.
        settings = {name: getattr(self, name) for name in defaults if hasattr(self, name)}
        check_settings(
            searcher, {name: value for name, value in settings.items() if value not in (None, defaults[name])}
        )

    @property
    def from_hub(self) -> bool:
        """Whether the data are a benchmark task's as the hub has them, with the hub's columns and classes."""
        return self.task is not None and not self.train_file and not self.text_columns

    @classmethod
    def from_mapping(cls, values: dict[str, Any], where: str) -> RunOptions:
        """Options from a mapping such as a YAML file's content; `where` is named in errors.

        Raises:
            InputError: a key that is no option, or what the constructor raises.
        """
        cls.check_names(values, where)
        if "versions" in values and values.get("placement") is None:
            values = {**values, "placement": "prepend"}  # a run wrote it when there was no other
        try:
            return cls(**{key: value for key, value in values.items() if key not in RECORDS})
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def check_names(cls, values: Iterable[str], where: str) -> None:
        """Refuse what is no option's name; `where` is named in errors.

        Raises:
            InputError: which one, and what it may have been meant to be.
        """
        names = [one.name for one in dataclasses.fields(cls)]
        for key in values:
            if key not in names and key not in RECORDS:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else f" Options are: {', '.join(names)}."
                raise InputError(f"{where}: {key!r} is not an option.{hint}")

    def lasting(self) -> dict[str, Any]:
        """The options that say what the run is, as plain values for config.yaml."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in CONDUCT}

    def folder(self) -> Path:
        """The output folder.

        Raises:
            InputError: none was given.
        """
        if not self.output_dir:
            raise InputError("output_dir is missing: name a folder for what the run writes (output_dir=FOLDER).")
        return Path(self.output_dir)


# What a comparison varies from run to run, besides the options of prompts and their search.
VARIED = ("learning_rate", "seed", "head_baseline")
PROMPT_OPTIONS = tuple(one.name for one in dataclasses.fields(RunOptions) if one.metadata["group"] in PROMPT_GROUPS)
# What only a search goes by.
SEARCH_OPTIONS = tuple(one.name for one in dataclasses.fields(RunOptions) if one.metadata["verbs"] == SEARCHING)
# What all methods of a comparison share: backbone, data, and how long and how is trained.
SHARED_OPTIONS = tuple(
    one.name
    for one in dataclasses.fields(RunOptions)
    if one.metadata["group"] in ("Backbone", "Data", "Training") and one.name not in VARIED
)


def merged(written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's file says, but for what is given beside it, and for what that excludes.

    Args:
        written: options by name, such as a run's config.yaml holds.
        given: options by name.
    """
    said = {name for name, value in given.items() if value is not None}
    if said & {"placement", "preset"}:
        # What another placement, or no preset, has made of these is not what was asked for.
        resolved = (
            "placement",
            "generator",
            *PREPEND_DEFAULTS,
            *(("searcher", "selection") if "preset" in said else ()),
        )
        written = {name: value for name, value in written.items() if name not in resolved}
    excluded = {name for ways in (LENGTHS, SELECTIONS) if said.intersection(ways) for name in ways}
    return {**{name: value for name, value in written.items() if name not in excluded}, **given}


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(RunOptions)


def _coerce(value: Any, hint: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    wants_float = hint is float or float in typing.get_args(hint)
    if wants_float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(one) for one in arguments)
    if origin is list:
        return f"a list of {'whole numbers' if arguments[0] is int else 'texts'}"
    if origin is dict:
        return "a mapping of texts to texts"
    return names[hint]
