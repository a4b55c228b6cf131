"""TaskEncoder: tokenizes examples and reads class scores from the output of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.answer_logits import (
    causal_answer_logits,
    classifier_logits,
    forward_arguments,
    masked_answer_logits,
)
from sptune.tasks.label_words import label_token_ids
from sptune.tasks.padding import Batch, PaddingCollator, padding_token_id
from sptune.tasks.special_tokens import broken_up, ending_tokens, special_token_pattern
from sptune.tasks.splits import Example
from sptune.tasks.targets import check_targets, targets
from sptune.tasks.task import Task
from sptune.tasks.template import Template
from sptune.tasks.token_dataset import CHUNK, token_dataset
from sptune.tasks.truncation import tokens_that_fit

logger = logging.getLogger(__name__)


class TaskEncoder:
    """Tokenizes the examples of a task and reads class scores from the output of a model.

    The input of a verbalizer is its template. Texts that are too long are cut at their end, the longer one of a pair
    first; the template itself is never cut. The input of a causal verbalizer is padded on the left.

    Args:
        task: the task.
        tokenizer: a fast tokenizer of the backbone. Its padding side does not matter; without a padding token, the end
            token is used.
        max_length: the maximum number of tokens of an input.
        causal: whether the backbone is a causal language model.

    Attributes:
        too_long: the number of examples that the last `encode` cut.
        collator: makes batches from the rows that `encode` returns.
        label_token_ids: for a verbalizer, the token of each class's label word.

    Raises:
        InputError: if the tokenizer is slow, has no mask token or does not know a label word, or the template leaves
            no room for text.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, causal: bool) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"The tokenizer {type(tokenizer).__name__} is slow, but cutting long texts needs the character offsets "
                "of a fast one. Load it with use_fast=True, or choose another backbone."
            )
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.causal = causal
        self.too_long = 0
        is_verbalizer = not task.trains_head
        self.collator = PaddingCollator(padding_token_id(tokenizer), left=causal and is_verbalizer)
        self._template = self._input_template()
        self._answer = ""
        self._mask_token_id: int | None = None
        self._ending = 0
        self.label_token_ids: tuple[int, ...] = ()
        if is_verbalizer:
            assert task.label_words is not None
            self.label_token_ids = label_token_ids(tokenizer, task, causal)
            if causal:
                # The model answers after the last token, so the tokenizer must not add tokens after the template.
                self._ending = ending_tokens(tokenizer)
            elif tokenizer.mask_token_id is None:
                raise InputError(
                    f"The tokenizer {type(tokenizer).__name__} has no mask token, so its model is not a masked "
                    "language model; set causal=True, or use a classifier task."
                )
            else:
                self._answer = tokenizer.mask_token
                self._mask_token_id = tokenizer.mask_token_id
        self._special = special_token_pattern(tokenizer)
        self._check_room()

    def _input_template(self) -> Template | None:
        """The template of the input; None for one text and for a pair that the tokenizer joins."""
        if not self.task.trains_head:
            return self.task.template_for(self.causal)
        if len(self.task.text_fields) == 2 and self.causal:
            # The tokenizers of causal models put nothing between the texts of a pair.
            first, second = self.task.text_fields
            return Template((("field", first), ("literal", "\n"), ("field", second)))
        return None

    def _check_room(self) -> None:
        blank = dict.fromkeys(self.task.text_fields, "")
        texts = [""] * len(blank) if self._template is None else [self._template.render(blank, self._answer)[0]]
        used = len(self._tokenize(*[[text] for text in texts])["input_ids"][0])
        needed = used + len(self.task.text_fields)
        if self.max_length < needed:
            raise InputError(
                f"max_length={self.max_length} leaves no room for text: task {self.task.name!r} needs {used} tokens "
                f"without it. Choose at least {needed}, better several times that."
            )

    def encode(self, examples: Sequence[Example]) -> Dataset:
        """Tokenize examples.

        Args:
            examples: all with labels, or all without.

        Returns:
            Rows with `input_ids`, `attention_mask`, `token_type_ids` if the tokenizer returns them, `labels` (see
            `sptune.tasks.targets`; absent without labels) and `length` in tokens.

        Raises:
            InputError: if there are no examples, a label is not a class of the task, or only some examples have labels.
        """
        if not examples:
            raise InputError(f"There are no examples to encode for task {self.task.name!r}; give at least one.")
        check_targets(self.task, examples)
        rows = token_dataset(self._encoded_chunks(examples, cut := list[int]()))
        self.too_long = len(cut)
        if cut:
            warn_cut(len(cut), examples[cut[0]], len(examples), self.max_length)
        return rows

    def _encoded_chunks(self, examples: Sequence[Example], cut: list[int]) -> Iterator[dict[str, list[Any]]]:
        """The columns of `encode`, chunk by chunk; `cut` receives the numbers of the examples that were cut."""
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            columns, rows = self.encode_texts([example.fields for example in chunk])
            cut.extend(start + row for row in rows)
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
            if (labels := targets(self.task, chunk)) is not None:
                columns["labels"] = list(labels)
            yield columns

    def encode_texts(self, fields: Sequence[Mapping[str, str]]) -> tuple[dict[str, list[Any]], list[int]]:
        """Tokenize texts without labels.

        Args:
            fields: for each row, the text of each text column.

        Returns:
            `input_ids`, `attention_mask` and, if the tokenizer returns them, `token_type_ids`, a list a row; and the
            indices of the rows that were cut.
        """
        clean = [{name: self._clean(text) for name, text in texts.items()} for texts in fields]
        if self._template is None:
            return self._tokenize_plain(clean)
        return self._tokenize_template(self._template, clean)

    def input_length(self, texts: Mapping[str, str]) -> int:
        """The number of tokens of an input before it is cut."""
        clean = [{name: self._clean(text) for name, text in texts.items()}]
        return len(self._tokenize_whole(clean)["input_ids"][0])

    def _clean(self, text: str) -> str:
        """Strip the text and break up special tokens that it spells, so that they stay ordinary text."""
        return broken_up(text, self._special).strip()

    def _tokenize(self, *texts: list[str], **options: Any) -> dict[str, list[Any]]:
        takes_types = not self.causal and "token_type_ids" in self.tokenizer.model_input_names
        encoded = self.tokenizer(
            *texts,
            padding=False,
            return_token_type_ids=takes_types,
            return_attention_mask=True,
            verbose=False,
            **options,
        )
        columns = {name: list(values) for name, values in encoded.items() if name != "overflow_to_sample_mapping"}
        if self._ending:
            columns = {name: [row[: -self._ending] for row in rows] for name, rows in columns.items()}
        return columns

    def _too_long(self, columns: dict[str, list[Any]]) -> list[int]:
        return [row for row, ids in enumerate(columns["input_ids"]) if len(ids) > self.max_length]

    def _tokenize_whole(self, fields: Sequence[Mapping[str, str]]) -> dict[str, list[Any]]:
        """The tokenizer's columns of texts that are not cut."""
        if self._template is None:
            return self._tokenize(*self._plain(fields), truncation=False)
        return self._tokenize([self._template.render(texts, self._answer)[0] for texts in fields], truncation=False)

    def _plain(self, fields: Sequence[Mapping[str, str]]) -> list[list[str]]:
        return [[texts[name] for texts in fields] for name in self.task.text_fields]

    def _tokenize_plain(self, fields: Sequence[Mapping[str, str]]) -> tuple[dict[str, list[Any]], list[int]]:
        columns = self._tokenize_whole(fields)
        rows = self._too_long(columns)
        if rows:
            texts = self._plain([fields[row] for row in rows])
            cut = self._tokenize(*texts, truncation="longest_first", max_length=self.max_length)
            for name, values in cut.items():
                for row, value in zip(rows, values, strict=True):
                    columns[name][row] = value
        return columns, rows

    def _tokenize_template(
        self, template: Template, fields: Sequence[Mapping[str, str]]
    ) -> tuple[dict[str, list[Any]], list[int]]:
        rendered = [template.render(texts, self._answer) for texts in fields]
        columns = self._tokenize([text for text, _ in rendered], truncation=False)
        rows = self._too_long(columns)
        if rows:
            long = self._tokenize([rendered[row][0] for row in rows], truncation=False, return_offsets_mapping=True)
            for number, row in enumerate(rows):
                text, spans = rendered[row]
                kept = tokens_that_fit(text, spans, long["offset_mapping"][number], self.max_length)
                for values in columns.values():
                    values[row] = [values[row][index] for index in kept]
        if self._mask_token_id is not None:
            for ids, (text, _) in zip(columns["input_ids"], rendered, strict=True):
                if ids.count(self._mask_token_id) != 1:
                    raise InputError(
                        f"The tokenizer {type(self.tokenizer).__name__} produces {ids.count(self._mask_token_id)} "
                        f"mask tokens for {text!r} instead of one; choose another backbone or a classifier task."
                    )
        return columns, rows

    def class_scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run the model without labels and read the score of each class.

        Args:
            model: a transformers model, possibly wrapped by PEFT, Accelerate or data parallelism.
            batch: a batch from the collator.

        Returns:
            Scores in float32, (batch, classes): for a verbalizer the logits of the label words at the answer position,
            for a classifier the logits of the head.

        Raises:
            InputError: if the head of the model does not fit the task.
        """
        return self.read_scores(self.answer_logits(model, batch))

    def answer_logits(self, model: nn.Module, batch: Batch, **options: Any) -> torch.Tensor:
        """The logits at the answer, (batch, vocabulary), or those of a classifier, (batch, classes).

        Args:
            model: as in `class_scores`.
            batch: a batch from the collator.
            options: passed to the model, such as PEFT's `adapter_names`.
        """
        arguments = forward_arguments(model)
        inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("labels", "length")}
        if arguments is not None and "token_type_ids" not in arguments:
            inputs.pop("token_type_ids", None)
        inputs |= options
        if self.task.trains_head:
            return classifier_logits(model, inputs)
        if self.causal:
            return causal_answer_logits(model, inputs, arguments)
        assert self._mask_token_id is not None
        return masked_answer_logits(model, inputs, self._mask_token_id)

    def read_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """The score of each class in float32, (batch, classes), from the logits of `answer_logits`.

        Raises:
            InputError: if the head of the model does not fit the task.
        """
        if self.task.trains_head:
            check_classes(logits, self.task)
            return logits.float()
        if max(self.label_token_ids) >= logits.shape[-1]:
            raise InputError(
                f"The model scores {logits.shape[-1]} tokens, but a label word is token {max(self.label_token_ids)}; "
                "the tokenizer belongs to another model."
            )
        return logits[:, list(self.label_token_ids)].float()


def check_classes(logits: torch.Tensor, task: Task) -> None:
    """Refuse logits of a head that has another number of classes than the task.

    Raises:
        InputError: the numbers differ.
    """
    count = len(task.score_names)
    if logits.ndim != 2 or logits.shape[1] != count:
        wanted = f"has {count} classes" if task.labels else "predicts one number"
        raise InputError(
            f"The model returns scores of shape {tuple(logits.shape)}, but task {task.name!r} {wanted}; load it with "
            f"AutoModelForSequenceClassification and num_labels={count}."
        )


def warn_cut(cut: int, first: Example, count: int, max_length: int) -> None:
    """Warn that the texts of some of `count` examples were cut."""
    logger.warning(
        "%d of %d texts are longer than the maximum of %d tokens (the first: %s); their ends were cut.",
        cut,
        count,
        max_length,
        first.where,
    )
