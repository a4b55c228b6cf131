"""`RunOptions`: every option of a run, for Python, YAML files and the command line.

The options of the prompts and of their search are the fields of `PromptConfig` and `SearchConfig`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sptune.errors import InputError
from sptune.prompt_config import PAPER_FIELDS, PromptConfig
from sptune.runs.option_checks import check_combinations, check_ranges
from sptune.runs.option_mappings import NESTED, PROMPT_FIELDS, RENAMED, SEARCH_FIELDS, flattened, with_new_names
from sptune.runs.option_types import Option
from sptune.search.search_config import SearchConfig
from sptune.search.searchers import SEARCHERS
from sptune.training.cache_settings import DTYPES

# Options that may name a local file or folder to read.
PLACES = ("model", "gguf_file", "train_file", "validation_file", "test_file", "dataset")
# Options of how a run is done, not of what it is: they may change when a run is resumed.
CONDUCT = ("output_dir", "resume", "overwrite", "keep_checkpoints", "activation_cache", "activation_cache_memory")
# Where options given one by one come from, in errors.
ORIGIN = "options"

# What config.yaml holds besides options: records of the run, not read back.
RECORDS = ("command", "versions", "data_files")
ALL = ("fit", "search", "train")
SEARCHING = ("fit", "search")
TRAINING = ("fit", "train")
PROMPT_GROUPS = ("Prompts", "Search")


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    verbs: tuple[str, ...] = ALL,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
) -> Any:
    """A field with what the command line shows of it: its group, help, the verbs that take it, and its flag."""
    metadata = {"help": help, "group": group, "verbs": verbs, "choices": choices, "flag": flag}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(init=False)
class RunOptions:
    """The options of `fit`, `search` and `train`; None means that the run chooses, and config.yaml says what it chose.

    The fields of `prompts` and `search` may be given by their own names: `RunOptions(bottleneck_dim=4)` is
    `RunOptions(prompts=PromptConfig(bottleneck_dim=4))`.

    Raises:
        InputError: an unknown option, a value of the wrong type or outside its choices, or options that exclude
            each other.
    """

    model: str | None = _option(None, "Backbone", "Backbone: a hub id or a local folder.")
    gguf_file: str | None = _option(
        None, "Backbone", "Backbone as a GGUF file: its name inside --model, or the path of a local file."
    )
    revision: str | None = _option(None, "Backbone", "Branch, tag or commit of a backbone from the hub.")
    dtype: str = _option("float32", "Backbone", "dtype of the frozen backbone.", choices=DTYPES)
    head_pooling: str | None = _option(
        None,
        "Backbone",
        "Pooling of a classifier: 'mean', the masked mean over the text, or 'own', the backbone's own. "
        "Default: mean for encoders, own for causal models.",
        choices=("mean", "own"),
    )

    task: str | None = _option(None, "Data", "A benchmark task (see 'sptune tasks'); leave it out for your own data.")
    task_kind: str | None = _option(
        None,
        "Data",
        "'verbalizer' (label words read by the language-model head), 'classifier' (a trained head) or 'generate' (a "
        "causal model writes text). Default: verbalizer for a task with a template on a language model, else "
        "classifier.",
        choices=("verbalizer", "classifier", "generate"),
    )
    train_file: str | None = _option(None, "Data", "Training data: .jsonl, .csv, .tsv or .parquet.")
    validation_file: str | None = _option(None, "Data", "Validation data. Default: split off from the training data.")
    test_file: str | None = _option(None, "Data", "Test data. Default: split off from the training data.")
    dataset: str | None = _option(
        None, "Data", "Instead of files: a Hugging Face dataset, by its hub id, local folder or file."
    )
    dataset_config: str | None = _option(None, "Data", "Configuration of that dataset, such as a GLUE task.")
    text_columns: list[str] = _option(  # noqa: RUF009
        list,
        "Data",
        "Column with the text; give it twice for pairs. Default: the task's, or 'text'.",
        flag="text-column",
    )
    label_column: str | None = _option(None, "Data", "Column with the label. Default: the task's, or 'label'.")
    labels: list[str] = _option(  # noqa: RUF009
        list,
        "Data",
        "A class; once for each, in the order of the task. Default: the task's, or those in the data.",
        flag="label",
    )
    template: str | None = _option(
        None, "Data", "Turns your texts into a cloze, such as '{text} . It was [MASK] .'; needs --label-word."
    )
    label_words: dict[str, str] = _option(  # noqa: RUF009
        dict, "Data", "Label word of a class, such as 'positive=great'; once for each class.", flag="label-word"
    )
    prompt_column: str | None = _option(None, "Generation", "Column with the prompt. Default: 'prompt'.")
    completion_column: str | None = _option(None, "Generation", "Column with the completion. Default: 'completion'.")
    messages_column: str | None = _option(
        None,
        "Generation",
        "Column with lists of chat messages, instead of prompts and completions. Default: 'messages', if "
        "there is no column 'prompt'.",
    )
    few_shot: int | None = _option(
        None, "Data", "Train on this many examples only, drawn in proportion to the classes."
    )
    max_length: int | None = _option(
        None, "Data", "Maximum input length in tokens. Default: the backbone's, at most 512."
    )
    max_new_tokens: int | None = _option(
        None, "Generation", "Maximum length of a written text in tokens. Default: 128.", verbs=TRAINING
    )
    generated_examples: int | None = _option(
        None, "Generation", "Write completions for this many test examples. Default: 200.", verbs=TRAINING
    )

    preset: str | None = _option(
        None,
        "Prompts",
        "'paper': prompts in front of the text and a search by SPT-DARTS, unless other options say otherwise.",
        choices=("paper",),
    )
    prompts: PromptConfig = field(default_factory=PromptConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    search_steps: int | None = _option(
        None,
        "Search",
        "Optimizer steps of the search. Default: 150, or a quarter of those of the final training if that is less.",
        verbs=SEARCHING,
    )

    epochs: float | None = _option(
        None,
        "Training",
        "Epochs of the final training. Default: 5, at least 150 and at most 2000 steps.",
        verbs=TRAINING,
    )
    max_steps: int | None = _option(
        None, "Training", "Optimizer steps of the final training, instead of epochs.", verbs=TRAINING
    )
    batch_size: int = _option(16, "Training", "Batch size per device.")
    gradient_accumulation_steps: int = _option(1, "Training", "Batches per optimizer step.")
    learning_rate: float | None = _option(
        None, "Training", "Learning rate of the generators. Default: 5e-3, static prompts 5e-2."
    )
    head_learning_rate: float | None = _option(
        None, "Training", "Learning rate of a trained head. Default: 1e-2 with mean pooling, else 1e-3."
    )
    weight_decay: float = _option(0.01, "Training", "Weight decay of AdamW.")
    bf16: bool = _option(
        False,
        "Training",
        "Compute in bfloat16 where that is safe (autocast); trained weights stay float32. Left off on CPUs for which "
        "PyTorch has no bfloat16 kernels.",
    )
    activation_cache: bool = _option(
        True, "Training", "Run the layers below the first prompt layer once per text, and cache the result."
    )
    activation_cache_memory: float = _option(
        4.0, "Training", "Keep up to this many GiB of the cache in memory, more in a file."
    )
    activation_cache_dtype: str | None = _option(
        None,
        "Training",
        "dtype of the cache. Default: the backbone's; a shorter one is not exact.",
        choices=DTYPES,
    )
    gradient_checkpointing: bool = _option(False, "Training", "Trade time for memory in the backward pass.")
    linear_probe: bool = _option(
        True,
        "Training",
        "Also train a linear probe (label words, generate: evaluate zero-shot), and report the gain over it.",
        verbs=TRAINING,
    )
    seed: int = _option(0, "Training", "Seed of sampling, initialization and training.")

    output_dir: str | None = _option(None, "Output", "Folder for everything the run writes.", flag="output")
    resume: bool = _option(False, "Output", "Resume the run in --output.")
    overwrite: bool = _option(False, "Output", "Replace the run in --output.")
    keep_checkpoints: bool = _option(False, "Output", "Keep the checkpoints of a finished run.")

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
        self.prompts = self._prompts_of(values)
        self.search = self._search_of(values)
        check_ranges(self)
        check_combinations(self)

    def _prompts_of(self, values: Mapping[str, Any]) -> PromptConfig:
        given = {name: values[name] for name in PROMPT_FIELDS if values.get(name) is not None}
        if given.get("prompt_layers", "search") != "search":
            given.pop("candidate_layers", None)  # a file of a run that searched names them
        if "prompts" in values:
            return dataclasses.replace(values["prompts"], **given)
        preset = PAPER_FIELDS if self.preset == "paper" else {}
        return PromptConfig(**{**preset, **given})

    def _search_of(self, values: Mapping[str, Any]) -> SearchConfig:
        given = {name: values[name] for name in SEARCH_FIELDS if values.get(name) is not None}
        if "search" in values:
            return dataclasses.replace(values["search"], **given, seed=self.seed)
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
            if "versions" in values and values.get("placement") is None:
                values["placement"] = "prepend"  # a run wrote it when there was no other
            return cls(**{key: value for key, value in values.items() if key not in RECORDS})
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
