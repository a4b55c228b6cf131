"""The ten text-classification tasks of the paper: templates, label words and their Hugging Face datasets.

The templates with [MASK] are those of Late Prompt Tuning. A causal language model must read all text before it answers,
so a task with text after [MASK] also has a causal template.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from sptune.errors import InputError
from sptune.renamed import renamed_argument
from sptune.tasks.data import load_splits
from sptune.tasks.splits import Example, Splits
from sptune.tasks.stored_examples import StoredExamples
from sptune.tasks.task import Task

SENTIMENT = ("negative", "positive")
PAIR = ("text_a", "text_b")


@dataclass(frozen=True)
class HubSource:
    """The Hugging Face dataset of a task.

    Attributes:
        path: the id of the dataset.
        text_columns: the columns with text, in the order of the task's text fields.
        label_column: the column with the class.
        label_names: the class names in the dataset, in the order of the task's labels.
        config: the configuration of the dataset.
        split_names: see `load_splits`; None for a split that is split off from the training data.
    """

    path: str
    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    config: str | None = None
    split_names: Mapping[str, str | None] = field(default_factory=dict)


def _sentence(name: str, labels: tuple[str, ...], label_words: tuple[str, ...]) -> Task:
    return Task(
        name=name,
        kind="verbalizer",
        text_fields=("text",),
        label_field="label",
        labels=labels,
        template="{text} . It was [MASK] .",
        label_words=label_words,
    )


def _pair(
    name: str,
    labels: tuple[str, ...],
    label_words: tuple[str, ...],
    causal_template: str,
    template: str = "{text_a} ? [MASK] , {text_b}",
    positive_label: str | None = None,
) -> Task:
    return Task(
        name=name,
        kind="verbalizer",
        text_fields=PAIR,
        label_field="label",
        labels=labels,
        template=template,
        causal_template=causal_template,
        label_words=label_words,
        metrics=("accuracy",) if positive_label is None else ("accuracy", "f1"),
        positive_label=positive_label,
    )


BENCHMARK_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _sentence("sst2", SENTIMENT, ("terrible", "great")),
        _sentence("mr", SENTIMENT, ("terrible", "great")),
        _sentence("mpqa", SENTIMENT, ("terrible", "great")),
        _sentence("subj", ("subjective", "objective"), ("subjective", "objective")),
        Task(
            name="trec",
            kind="verbalizer",
            text_fields=("text",),
            label_field="label",
            labels=("description", "entity", "abbreviation", "human", "location", "number"),
            template="[MASK] : {text}",
            causal_template="{text} Question type:",
            label_words=("Description", "Entity", "Expression", "Human", "Location", "Number"),
        ),
        _pair(
            "mnli",
            ("contradiction", "entailment", "neutral"),
            ("No", "Yes", "Maybe"),
            "{text_a} Question: {text_b} Yes, No or Maybe? Answer:",
        ),
        _pair(
            "mrpc",
            ("not_paraphrase", "paraphrase"),
            ("No", "Yes"),
            "Sentence 1: {text_a} Sentence 2: {text_b} Do both mean the same? Yes or No? Answer:",
            positive_label="paraphrase",
        ),
        _pair(
            "qqp",
            ("not_duplicate", "duplicate"),
            ("No", "Yes"),
            "Question 1: {text_a} Question 2: {text_b} Do both ask the same? Yes or No? Answer:",
            template="{text_a} [MASK] , {text_b}",
            positive_label="duplicate",
        ),
        _pair(
            "qnli",
            ("entailment", "not_entailment"),
            ("Yes", "No"),
            "Question: {text_a} Sentence: {text_b} Does the sentence answer the question? Yes or No? Answer:",
        ),
        _pair(
            "rte",
            ("entailment", "not_entailment"),
            ("Yes", "No"),
            "{text_a} Question: {text_b} Yes or No? Answer:",
        ),
    )
}


def _glue(
    config: str, text_columns: tuple[str, ...], label_names: tuple[str, ...], test: str = "validation"
) -> HubSource:
    """A GLUE task, whose validation data are the test data because the labels of its test data are withheld."""
    splits = {"validation": None, "test": test}
    return HubSource("nyu-mll/glue", text_columns, "label", label_names, config, splits)


BENCHMARK_SOURCES: dict[str, HubSource] = {
    "sst2": _glue("sst2", ("sentence",), SENTIMENT),
    "mr": HubSource("cornell-movie-review-data/rotten_tomatoes", ("text",), "label", ("neg", "pos")),
    "mpqa": HubSource("rahulsikder223/SentEval-MPQA", ("sentence",), "label", ("0", "1")),
    "subj": HubSource("SetFit/subj", ("text",), "label_text", ("subjective", "objective")),
    "trec": HubSource(
        "SetFit/TREC-QC", ("text",), "label_coarse_original", ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
    ),
    "mnli": _glue(
        "mnli", ("premise", "hypothesis"), ("contradiction", "entailment", "neutral"), test="validation_matched"
    ),
    "mrpc": _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), test="test"),
    "qqp": _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "qnli": _glue("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
    "rte": _glue("rte", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
}


def benchmark_task(name: str) -> Task:
    """The task of a benchmark.

    Raises:
        InputError: if the name is unknown.
    """
    if name not in BENCHMARK_TASKS:
        raise InputError(
            f"There is no benchmark task {name!r}; choose from {', '.join(BENCHMARK_TASKS)}, or leave it out and "
            "name your own data."
        )
    return BENCHMARK_TASKS[name]


@renamed_argument("data", "dataset")
def load_benchmark(name: str, *, dataset: str | None = None, few_shot: int | None = None, seed: int = 0) -> Splits:
    """Load the data of a benchmark task, with the columns and classes of the task.

    Args:
        name: the name of the task.
        dataset: a local copy of the Hugging Face dataset, with the columns and labels of the original.
        few_shot: the number of training examples in all.
        seed: the seed of all random splits.

    Raises:
        InputError: if the name is unknown, or the data cannot be loaded or have errors.
    """
    task, source = benchmark_task(name), BENCHMARK_SOURCES.get(name)
    assert source is not None
    _, splits = load_splits(
        dataset=dataset or source.path,
        dataset_config=None if dataset else source.config,
        split_names=source.split_names,
        text_columns=source.text_columns,
        label_column=source.label_column,
        labels=source.label_names,
        few_shot=few_shot,
        seed=seed,
    )
    columns = dict(zip(source.text_columns, task.text_fields, strict=True))
    labels = dict(zip(source.label_names, task.labels, strict=True))

    def renamed(examples: Iterable[Example]) -> StoredExamples[Example]:
        return StoredExamples.write(
            replace(
                example,
                fields={columns[column]: text for column, text in example.fields.items()},
                label=None if example.label is None else labels[example.label],
            )
            for example in examples
        )

    return Splits(renamed(splits.train), renamed(splits.validation), renamed(splits.test), splits.notes)
