"""Task: the columns with text and label, the classes, and the template and label words of a verbalizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sptune.errors import InputError
from sptune.tasks.template import MASK, Template

KINDS = ("verbalizer", "classifier")
METRICS = ("accuracy", "f1")


@dataclass(frozen=True)
class Task:
    """A text-classification task.

    Attributes:
        name: the name in messages and files.
        kind: "verbalizer" (the language-model head scores one label word per class) or "classifier" (a classification
            head that is trained with the prompts).
        text_fields: the columns with text, in the order of the input; a classifier takes one or two.
        label_field: the column with the label.
        labels: the names of the classes; the index in this tuple is the class index.
        template: for a verbalizer, the input with {column} and one [MASK], such as "{text} . It was [MASK] .".
        causal_template: the template for a causal language model, which ends at the answer; by default `template` up
            to [MASK].
        label_words: for a verbalizer, the answer word of each class, in the order of `labels`.
        metrics: "accuracy" and "f1" (of `positive_label`); the score of the task is their mean.
        positive_label: the positive class of F1.

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
    metrics: tuple[str, ...] = ("accuracy",)
    positive_label: str | None = None

    def __post_init__(self) -> None:
        for name in ("text_fields", "labels", "label_words", "metrics"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise self._error(f"{name} is the text {value!r}", "give a list")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
            wrong = [one for one in value or () if not isinstance(one, str)]
            if wrong:
                raise self._error(f"{name} contains {wrong[0]!r}, which is not text", "give a list of texts")
        if self.kind not in KINDS:
            raise self._error(f"kind is {self.kind!r}", f"choose from {', '.join(KINDS)}")
        if not self.text_fields or len(set(self.text_fields)) < len(self.text_fields):
            raise self._error(f"text_fields is {self.text_fields}", "name at least one column, each once")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise self._error(f"labels is {self.labels}", "give at least two different classes")
        self._check_metrics()
        if self.kind == "classifier":
            self._check_classifier()
        else:
            self._check_verbalizer()

    def _error(self, found: str, remedy: str) -> InputError:
        return InputError(f"Task {self.name!r}: {found}; {remedy}.")

    def _check_metrics(self) -> None:
        if not self.metrics or any(metric not in METRICS for metric in self.metrics):
            raise self._error(f"metrics is {self.metrics}", f"choose from {', '.join(METRICS)}")
        if "f1" in self.metrics and self.positive_label is None:
            raise self._error("F1 needs a positive class", f"give positive_label, one of {', '.join(self.labels)}")
        if self.positive_label is not None and self.positive_label not in self.labels:
            raise self._error(f"positive_label is {self.positive_label!r}", f"choose from {', '.join(self.labels)}")

    def _check_classifier(self) -> None:
        if len(self.text_fields) > 2:
            raise self._error(
                f"a classifier reads one text or a pair, not {len(self.text_fields)} columns {self.text_fields}",
                "join columns in your data, or use a verbalizer with a template",
            )
        if self.template is not None or self.causal_template is not None or self.label_words is not None:
            raise self._error("a classifier has no template and no label words", "leave them out or choose verbalizer")

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

    def template_for(self, causal: bool) -> Template:
        """The template for a causal or a masked language model.

        Raises:
            InputError: if the task is a classifier or has no template for such a model.
        """
        if self.kind != "verbalizer":
            raise self._error("a classifier has no template", "use kind='verbalizer'")
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
        """The task as a classifier."""
        return replace(self, kind="classifier", template=None, causal_template=None, label_words=None)

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
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

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
