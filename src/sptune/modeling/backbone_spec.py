"""`BackboneSpec`: which backbone with which head an adapter belongs to, as task.json names it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

from sptune.errors import InputError, shortened
from sptune.modeling.problem_types import check_problem_type

MASKED_LM, CAUSAL_LM, CLASSIFIER = HEADS_OF_RUNS = "masked_lm", "causal_lm", "classifier"


@dataclass(frozen=True)
class BackboneSource:
    """The files of a backbone.

    Attributes:
        model: hub id, or absolute path of a local folder.
        gguf_file: name of a GGUF file inside `model`, None for an ordinary checkpoint.
        revision: branch, tag or commit on the hub.
        dtype: of the loaded weights, a name such as "float32".
    """

    model: str
    gguf_file: str | None = None
    revision: str | None = None
    dtype: str = "float32"

    def check(self) -> None:
        """Refuse values that a file may name but no run writes.

        Raises:
            InputError: which.
        """
        _check("model", self.model, isinstance(self.model, str) and bool(self.model) and "\0" not in self.model)
        file = self.gguf_file
        _check("gguf_file", file, file is None or (isinstance(file, str) and PurePath(file).name == file != ".."))
        _check("revision", self.revision, self.revision is None or isinstance(self.revision, str))
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else None
        _check("dtype", self.dtype, isinstance(dtype, torch.dtype) and dtype.is_floating_point)

    def files(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` that select the files."""
        given = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in given.items() if value is not None}

    def loading_options(self) -> dict[str, Any]:
        """The same, and that no code among the files runs; otherwise transformers asks the user on a terminal."""
        return {**self.files(), "trust_remote_code": False}

    def python_files(self) -> str:
        """The same as Python source that follows other arguments."""
        return "".join(f", {name}={value!r}" for name, value in self.files().items())

    def python_tokenizer(self) -> str:
        """A Python expression that loads the tokenizer, for the model card."""
        return f"AutoTokenizer.from_pretrained({self.model!r}{self.python_files()})"


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone with the head that a task needs, as task.json stores it beside the adapter.

    Attributes:
        source: where the files are.
        head: "masked_lm", "causal_lm" or "classifier".
        pooling: input of a classifier's head, "mean" or "own"; None for a language-model head.
        labels: names of a classifier's logits, in their order.
        problem_type: what a classifier's logits mean, as in transformers; None for scores of exclusive classes.
    """

    source: BackboneSource
    head: str
    pooling: str | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for task.json."""
        return {
            **dataclasses.asdict(self.source),
            "head": self.head,
            "pooling": self.pooling,
            "labels": list(self.labels),
            **({"problem_type": self.problem_type} if self.problem_type else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BackboneSpec:
        """The reverse of `to_dict`.

        Raises:
            InputError: a value is not one that `to_dict` gives.
            KeyError: a value is missing.
        """
        source = BackboneSource(**{field.name: values[field.name] for field in dataclasses.fields(BackboneSource)})
        source.check()
        head, pooling, labels = values["head"], values["pooling"], values["labels"]
        problem_type = values.get("problem_type")
        check_problem_type(problem_type)
        _check("head", head, head in HEADS_OF_RUNS)
        _check("pooling", pooling, pooling in (("mean", "own") if head == CLASSIFIER else (None,)))
        _check("labels", labels, isinstance(labels, list) and all(isinstance(label, str) for label in labels))
        return cls(source, head, pooling, tuple(labels), problem_type)

    def python(self) -> str:
        """A Python expression that loads this backbone, for the model card."""
        files = self.source.python_files()
        if self.head == CLASSIFIER:
            problem = f", problem_type={self.problem_type!r}" if self.problem_type else ""
            files = f", id2label={dict(enumerate(self.labels))}{problem}{files}"
        files += f", dtype={self.source.dtype!r}"  # transformers 5 would use the checkpoint's
        if self.pooling == "mean":
            return f"MeanPooledClassifier.from_backbone({self.source.model!r}{files})"
        return f"{auto_class(self.head).__name__}.from_pretrained({self.source.model!r}{files})"


def auto_class(head: str) -> Any:
    """The class of transformers that loads a backbone with this head."""
    classes = {
        MASKED_LM: AutoModelForMaskedLM,
        CAUSAL_LM: AutoModelForCausalLM,
        CLASSIFIER: AutoModelForSequenceClassification,
    }
    return classes[head]


def _check(name: str, value: object, fits: bool) -> None:
    if not fits:
        raise InputError(
            f"{name}={shortened(value)} of the backbone has the wrong type, or names nothing that is known."
        )
