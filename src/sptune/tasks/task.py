"""Task: the columns with text and label, what is predicted, and the template and label words of a verbalizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sptune.errors import InputError
from sptune.tasks.template import MASK, Template
from sptune.tasks.text_values import check_texts

VERBALIZER, CLASSIFIER, MULTI_LABEL, REGRESSION = "verbalizer", "classifier", "multi_label", "regression"
# The metrics of each kind whose mean the score can be; the first one is the default.
METRICS = {
    VERBALIZER: ("accuracy", "f1"),
    CLASSIFIER: ("accuracy", "f1"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    REGRESSION: ("r2",),
}
KINDS = tuple(METRICS)
# What the scores of a head mean, in transformers' words.
PROBLEM_TYPES = {MULTI_LABEL: "multi_label_classification", REGRESSION: "regression"}
DEFAULT_THRESHOLD, DEFAULT_SEPARATOR = 0.5, "|"
# What only some kinds have, and their defaults there.
DEFAULTS: dict[str, dict[str, Any]] = {
    MULTI_LABEL: {"threshold": DEFAULT_THRESHOLD, "label_separator": DEFAULT_SEPARATOR},
    REGRESSION: {"target_mean": 0.0, "target_std": 1.0},
}
OWN_FIELDS = tuple(name for own in DEFAULTS.values() for name in own)
OPTIONAL_TEXTS = ("template", "causal_template", "positive_label", "label_separator")


@dataclass(frozen=True)
class Task:
    """A task that predicts one class, several labels or a number for a text.

    Attributes:
        name: the name in messages and files.
        kind: "verbalizer" (the language-model head scores one label word per class), "classifier" (a classification
            head that is trained with the prompts), "multi_label" (such a head, with any number of labels for each
            text) or "regression" (a head that predicts a number).
        text_fields: the columns with text, in the order of the input; a classifier takes one or two.
        label_field: the column with the label.
        labels: the names of the classes or labels; the index in this tuple is the class index. A regression has none.
        template: for a verbalizer, the input with {column} and one [MASK], such as "{text} . It was [MASK] .".
        causal_template: the template for a causal language model, which ends at the answer; by default `template` up
            to [MASK].
        label_words: for a verbalizer, the answer word of each class, in the order of `labels`.
        metrics: the score of the task is the mean of these: "accuracy" and "f1" (of `positive_label`); of several
            labels "micro_f1", "macro_f1" and "subset_accuracy"; of a regression "r2". By default the first one.
        positive_label: the positive class of F1.
        threshold: of several labels, those with at least this probability are predicted. Default: 0.5.
        label_separator: of several labels, what separates them in a text. Default: "|".
        target_mean: of a regression, the mean of the training numbers. The head learns to predict
            (number - mean) / standard deviation, so that its learning rate does not depend on the unit.
        target_std: of a regression, their standard deviation.

    Raises:
        InputError: if a value is invalid.
    """

    name: str
    kind: str
    text_fields: tuple[str, ...]
    label_field: str
    labels: tuple[str, ...]
    template: str | None = None
    causal_template: str | None = None
    label_words: tuple[str, ...] | None = None
    metrics: tuple[str, ...] = ()
    positive_label: str | None = None
    threshold: float | None = None
    label_separator: str | None = None
    target_mean: float | None = None
    target_std: float | None = None

    def __post_init__(self) -> None:
        check_texts(self, ("name", "kind", "label_field"), OPTIONAL_TEXTS)
        if self.kind not in KINDS:
            raise self._error(f"kind is {self.kind!r}", f"choose from {', '.join(KINDS)}")
        if self.metrics == ():
            object.__setattr__(self, "metrics", METRICS[self.kind][:1])
        for name in ("text_fields", "labels", "label_words", "metrics"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise self._error(f"{name} is the text {value!r}", "give a list")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
            wrong = [one for one in value or () if not isinstance(one, str)]
            if wrong:
                raise self._error(f"{name} contains {wrong[0]!r}, which is not text", "give a list of texts")
        if not self.text_fields or len(set(self.text_fields)) < len(self.text_fields):
            raise self._error(f"text_fields is {self.text_fields}", "name at least one column, each once")
        if self.kind == REGRESSION and self.labels:
            raise self._error(f"labels is {self.labels}", "leave it out: a regression predicts a number")
        if self.kind != REGRESSION and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise self._error(f"labels is {self.labels}", "give at least two different classes")
        self._check_metrics()
        self._check_own_fields()
        if self.trains_head:
            self._check_classifier()
        else:
            self._check_verbalizer()

    def _error(self, found: str, remedy: str) -> InputError:
        return InputError(f"Task {self.name!r}: {found}; {remedy}.")

    def _check_metrics(self) -> None:
        allowed = METRICS[self.kind]
        if not self.metrics or any(metric not in allowed for metric in self.metrics):
            raise self._error(f"metrics is {self.metrics}", f"choose from {', '.join(allowed)}")
        if "f1" in self.metrics and self.positive_label is None:
            raise self._error("F1 needs a positive class", f"give positive_label, one of {', '.join(self.labels)}")
        if self.positive_label is not None and self.positive_label not in self.labels:
            raise self._error(f"positive_label is {self.positive_label!r}", f"choose from {', '.join(self.labels)}")

    def _check_own_fields(self) -> None:
        """Fill in what only some kinds have, and refuse it for others."""
        defaults = DEFAULTS.get(self.kind, {})
        for name in OWN_FIELDS:
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, defaults.get(name))
            elif name not in defaults:
                raise self._error(f"{name} is {value!r}", f"leave it out: kind {self.kind!r} has none")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise self._error(f"threshold is {self.threshold}", "give a probability between 0 and 1")
        if self.label_separator == "":
            raise self._error("label_separator is empty", f"give a character such as {DEFAULT_SEPARATOR!r}")
        if self.target_std is not None and not (
            math.isfinite(self.target_mean or 0.0) and 0 < self.target_std < math.inf
        ):
            raise self._error(
                f"target_mean is {self.target_mean} and target_std is {self.target_std}",
                "give finite numbers, the second above 0",
            )

    def _check_classifier(self) -> None:
        if len(self.text_fields) > 2:
            raise self._error(
                f"a {self._trained} reads one text or a pair, not {len(self.text_fields)} columns {self.text_fields}",
                "join columns in your data, or use a verbalizer with a template",
            )
        if self.template is not None or self.causal_template is not None or self.label_words is not None:
            raise self._error(
                f"a {self._trained} has no template and no label words", "leave them out or choose verbalizer"
            )

    def _check_verbalizer(self) -> None:
        if self.template is None and self.causal_template is None:
            raise self._error("a verbalizer needs a template", f"give one such as '{{text}} . It was {MASK} .'")
        for template in (self.template, self.causal_template):
            if template is None:
                continue
            used = Template.parse(template).fields
            if set(used) != set(self.text_fields):
                raise self._error(
                    f"template {template!r} uses the columns {', '.join(used)}, but the text columns are "
                    f"{', '.join(self.text_fields)}",
                    "name the same columns in both",
                )
        words = self.label_words
        if words is None or len(words) != len(self.labels) or len(set(words)) < len(words):
            raise self._error(
                f"label_words is {words} and the classes are {', '.join(self.labels)}",
                "give each class a word of its own, in the order of the classes",
            )
        if any(not word.strip() for word in words):
            raise self._error(f"label_words is {words}", "give each class a word")

    @property
    def _trained(self) -> str:
        """What the kind is called where a head is trained."""
        return "classifier" if self.kind == CLASSIFIER else f"task of kind {self.kind!r}"

    @property
    def trains_head(self) -> bool:
        """Whether a head is trained with the prompts."""
        return self.kind != VERBALIZER

    @property
    def problem_type(self) -> str:
        """What the scores mean, in transformers' words."""
        return PROBLEM_TYPES.get(self.kind, "single_label_classification")

    @property
    def score_names(self) -> tuple[str, ...]:
        """A name for each score: the classes; of a regression, the column with the number."""
        return self.labels if self.kind != REGRESSION else (self.label_field,)

    def template_for(self, causal: bool) -> Template:
        """The template for a causal or a masked language model.

        Raises:
            InputError: if the task is a classifier or has no template for such a model.
        """
        if self.trains_head:
            raise self._error(f"a {self._trained} has no template", "use kind='verbalizer'")
        if causal:
            return Template.parse(self.causal_template or self.template or "").open_ended()
        template = Template.parse(self.template or self.causal_template or "")
        if not template.has_answer:
            raise self._error(
                f"template '{template}' has no {MASK}",
                f"a masked language model needs it at the position of the label word, such as '{template} {MASK} .'",
            )
        return template

    def answer_context(self, causal: bool) -> tuple[str, bool]:
        """The text of the template before the label word, and whether a space separates them; see `Template`."""
        text = (self.causal_template or self.template) if causal else (self.template or self.causal_template)
        return Template.parse(text or "").answer_context

    def as_classifier(self) -> Task:
        """The task with a head that is trained instead of label words."""
        if self.trains_head:
            return self
        return replace(self, kind=CLASSIFIER, template=None, causal_template=None, label_words=None)

    def with_columns(self, text_columns: Sequence[str], label_column: str | None = None) -> Task:
        """The task with other column names, matched by position.

        Raises:
            InputError: if the number of text columns differs.
        """
        if len(text_columns) != len(self.text_fields):
            raise self._error(
                f"the text columns given are {', '.join(text_columns)}",
                f"it reads {len(self.text_fields)} ({', '.join(self.text_fields)}); give as many, in this order",
            )
        names = dict(zip(self.text_fields, text_columns, strict=True))

        def rename(template: str | None) -> str | None:
            return None if template is None else str(Template.parse(template).renamed(names))

        return replace(
            self,
            text_fields=tuple(text_columns),
            label_field=label_column or self.label_field,
            template=rename(self.template),
            causal_template=rename(self.causal_template),
        )

    def with_labels(self, labels: Sequence[str]) -> Task:
        """The task with other class names, matched by position.

        Raises:
            InputError: if the number of classes differs.
        """
        if len(labels) != len(self.labels):
            raise self._error(
                f"the labels given are {', '.join(labels)}",
                f"it has the {len(self.labels)} classes {', '.join(self.labels)}; give as many, in this order",
            )
        positive = None if self.positive_label is None else labels[self.labels.index(self.positive_label)]
        return replace(self, labels=tuple(labels), positive_label=positive)

    def to_dict(self) -> dict[str, Any]:
        """The content of task.json."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in OWN_FIELDS or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """The task from the content of task.json.

        Raises:
            InputError: if a key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {"name", "kind", "text_fields", "label_field", "labels"}
        if set(values) - known or needed - set(values):
            raise InputError(
                f"A task has the keys {', '.join(sorted(known))} ({', '.join(sorted(needed))} are needed); found "
                f"{', '.join(sorted(map(str, values))) or 'none'}. Use a task.json that sptune wrote."
            )
        return cls(**values)
