"""TaskEncoder: examples to tokens, and a model's output to class scores."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.answer_logits import causal_answer_logits, forward_arguments, masked_answer_logits
from sptune.tasks.label_words import label_token_ids
from sptune.tasks.padding import Batch, PaddingCollator, padding_token_id
from sptune.tasks.splits import Example
from sptune.tasks.task import Task
from sptune.tasks.template import Template

logger = logging.getLogger(__name__)

CHUNK = 4096


class TaskEncoder:
    """Turns a task's examples into tokens for one tokenizer, and a model's output into class scores.

    A verbalizer's input is its template. Texts that are too long lose their end, the longer one of a pair first; the
    template and the place of the answer are never cut. A causal model gets its padding in front where it answers.

    Args:
        task: what to encode.
        tokenizer: a fast tokenizer of the backbone; its padding side does not matter, and a missing padding token is
            replaced by the end token.
        max_length: the most tokens an input may have.
        causal: whether the backbone reads from left to right.

    Attributes:
        too_long: how many examples of the last `encode` were cut.
        collator: makes batches of what `encode` returns.
        label_token_ids: for a verbalizer, the token of each class's label word.

    Raises:
        InputError: a tokenizer without offsets or without a mask, label words that are no tokens, or a template that
            leaves no room for text.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, causal: bool) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"The tokenizer {type(tokenizer).__name__} is not a fast one, and cutting long texts needs to know "
                "which characters a token stands for. Load it with use_fast=True, or choose another backbone."
            )
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.causal = causal
        self.too_long = 0
        answers = task.kind == "verbalizer"
        self.collator = PaddingCollator(padding_token_id(tokenizer), left=causal and answers)
        self._template = self._input_template()
        self._answer = ""
        self._mask_token_id: int | None = None
        self._ending = 0
        self.label_token_ids: tuple[int, ...] = ()
        if answers:
            assert task.label_words is not None
            self.label_token_ids = label_token_ids(tokenizer, task, causal)
            if causal:
                # The model answers after the last token, so nothing may be put behind the template's own end.
                self._ending = _ending_tokens(tokenizer)
            elif tokenizer.mask_token_id is None:
                raise InputError(
                    f"The tokenizer {type(tokenizer).__name__} has no mask token, so its model is no masked language "
                    "model; set causal=True, or use a classifier task."
                )
            else:
                self._answer = tokenizer.mask_token
                self._mask_token_id = tokenizer.mask_token_id
        self._special = _special_token_pattern(tokenizer)
        self._check_room()

    def _input_template(self) -> Template | None:
        """The template of the input; None for one text, or a pair that the tokenizer joins."""
        if self.task.kind == "verbalizer":
            return self.task.template_for(self.causal)
        if len(self.task.text_fields) == 2 and self.causal:
            # Causal tokenizers put nothing between the texts of a pair.
            first, second = self.task.text_fields
            return Template((("field", first), ("literal", "\n"), ("field", second)))
        return None

    def _check_room(self) -> None:
        blank = dict.fromkeys(self.task.text_fields, "")
        texts = [""] * len(blank) if self._template is None else [self._template.render(blank, self._answer)[0]]
        used = len(self._tokenise(*[[text] for text in texts])["input_ids"][0])
        needed = used + len(self.task.text_fields)
        if self.max_length < needed:
            raise InputError(
                f"max_length={self.max_length} leaves no room for text: task {self.task.name!r} takes {used} tokens "
                f"without it. Choose at least {needed}, better several times as many."
            )

    # Encoding

    def encode(self, examples: Sequence[Example]) -> Dataset:
        """Tokenise examples.

        Args:
            examples: with labels, or all without.

        Returns:
            Rows with `input_ids`, `attention_mask`, `token_type_ids` if the tokenizer gives them, `labels` (the class
            index; absent for examples without labels) and `length` in tokens.

        Raises:
            InputError: no examples, a label that is not one of the task's, or labels missing here and there.
        """
        if not examples:
            raise InputError(f"There are no examples to encode for task {self.task.name!r}; give at least one.")
        labels = self._class_indices(examples)
        chunks: list[Dataset] = []
        too_long: list[Example] = []
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            columns, rows = self._encode_texts([example.fields for example in chunk])
            too_long.extend(chunk[row] for row in rows)
            columns["length"] = [len(ids) for ids in columns["input_ids"]]
            if labels is not None:
                columns["labels"] = labels[start : start + CHUNK]
            chunks.append(Dataset.from_dict(columns))
        self.too_long = len(too_long)
        if too_long:
            logger.warning(
                "%d of %d texts are longer than the %d tokens an input may have (the first: %s); their ends were cut.",
                len(too_long),
                len(examples),
                self.max_length,
                too_long[0].where,
            )
        return chunks[0] if len(chunks) == 1 else concatenate_datasets(chunks)

    def _class_indices(self, examples: Sequence[Example]) -> list[int] | None:
        index = {label: number for number, label in enumerate(self.task.labels)}
        for example in examples:
            if example.label is not None and example.label not in index:
                raise InputError(
                    f"{example.where}: label {example.label!r} is not a class of task {self.task.name!r} "
                    f"({', '.join(self.task.labels)}); correct the data or the task's labels."
                )
        missing = [example.where for example in examples if example.label is None]
        if missing and len(missing) < len(examples):
            raise InputError(
                f"{len(missing)} of {len(examples)} examples have no label (the first: {missing[0]}); label all or "
                "none."
            )
        return None if missing else [index[example.label] for example in examples if example.label is not None]

    def _encode_texts(self, fields: Sequence[dict[str, str]]) -> tuple[dict[str, list[Any]], list[int]]:
        """The tokens, and the rows that had to be cut."""
        clean = [{name: self._clean(text) for name, text in texts.items()} for texts in fields]
        if self._template is None:
            return self._tokenise_plain(clean)
        return self._tokenise_template(self._template, clean)

    def _clean(self, text: str) -> str:
        """The text without spaces around it, and with what only looks like a special token made ordinary text."""
        return self._special.sub(lambda found: found[0][0] + " " + found[0][1:], text).strip()

    def _tokenise(self, *texts: list[str], **options: Any) -> dict[str, list[Any]]:
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

    def _tokenise_plain(self, fields: Sequence[dict[str, str]]) -> tuple[dict[str, list[Any]], list[int]]:
        texts = [[texts[name] for texts in fields] for name in self.task.text_fields]
        columns = self._tokenise(*texts, truncation=False)
        rows = self._too_long(columns)
        if rows:
            cut = self._tokenise(
                *[[column[row] for row in rows] for column in texts],
                truncation="longest_first",
                max_length=self.max_length,
            )
            for name, values in cut.items():
                for row, value in zip(rows, values, strict=True):
                    columns[name][row] = value
        return columns, rows

    def _tokenise_template(
        self, template: Template, fields: Sequence[dict[str, str]]
    ) -> tuple[dict[str, list[Any]], list[int]]:
        rendered = [template.render(texts, self._answer) for texts in fields]
        columns = self._tokenise([text for text, _ in rendered], truncation=False)
        rows = self._too_long(columns)
        if rows:
            long = self._tokenise([rendered[row][0] for row in rows], truncation=False, return_offsets_mapping=True)
            for number, row in enumerate(rows):
                text, spans = rendered[row]
                kept = self._kept_tokens(text, spans, long["offset_mapping"][number])
                for values in columns.values():
                    values[row] = [values[row][index] for index in kept]
        if self._mask_token_id is not None:
            for ids, (text, _) in zip(columns["input_ids"], rendered, strict=True):
                if ids.count(self._mask_token_id) != 1:
                    raise InputError(
                        f"The tokenizer {type(self.tokenizer).__name__} gives {ids.count(self._mask_token_id)} mask "
                        f"tokens for {text!r}, where one is expected; choose another backbone or a classifier task."
                    )
        return columns, rows

    def _kept_tokens(self, text: str, spans: list[tuple[int, int]], offsets: list[tuple[int, int]]) -> list[int]:
        """The tokens that stay when the longest field loses its last token until the input fits."""
        of_field: list[list[int]] = [[] for _ in spans]
        for index, (start, end) in enumerate(offsets):
            for field, (first, last) in enumerate(spans):
                if start < end and first < end <= last:
                    of_field[field].append(index)
        dropped = set()
        for _ in range(len(offsets) - self.max_length):
            longest = max(of_field, key=len)
            if not longest:
                raise InputError(
                    f"{text[:80]!r}… takes more than max_length={self.max_length} tokens even without its text; "
                    "choose a larger max_length."
                )
            dropped.add(longest.pop())
        return [index for index in range(len(offsets)) if index not in dropped]

    # Scores

    def class_scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run the model, without labels, and read the score of each class.

        Args:
            model: a transformers model, or one wrapped by PEFT, Accelerate or data parallelism.
            batch: as the collator makes it.

        Returns:
            (batch, classes) in float32: for a verbalizer the label words' logits where the answer stands, for a
            classifier the head's logits.

        Raises:
            InputError: a model whose head does not fit the task.
        """
        arguments = forward_arguments(model)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "length")}
        if arguments is not None and "token_type_ids" not in arguments:
            inputs.pop("token_type_ids", None)
        if self.task.kind == "classifier":
            return self._classifier_scores(model(**inputs))
        if self.causal:
            logits = causal_answer_logits(model, inputs, arguments)
        else:
            assert self._mask_token_id is not None
            logits = masked_answer_logits(model, inputs, self._mask_token_id)
        if max(self.label_token_ids) >= logits.shape[-1]:
            raise InputError(
                f"The model scores {logits.shape[-1]} tokens, but a label word is token {max(self.label_token_ids)}; "
                "the tokenizer belongs to another model."
            )
        return logits[:, list(self.label_token_ids)].float()

    def _classifier_scores(self, outputs: Any) -> torch.Tensor:
        logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
        if logits.ndim != 2 or logits.shape[1] != len(self.task.labels):
            raise InputError(
                f"The model gives scores of shape {tuple(logits.shape)}, and task {self.task.name!r} has "
                f"{len(self.task.labels)} classes; load it with AutoModelForSequenceClassification and "
                f"num_labels={len(self.task.labels)}."
            )
        return logits.float()


def _ending_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    special = tokenizer("it", return_special_tokens_mask=True)["special_tokens_mask"]
    return len(special) - max(index for index, flag in enumerate(special) if not flag) - 1


def _special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {token for token in [*tokenizer.all_special_tokens, *added] if len(token) > 1}
    if not tokens:
        return re.compile(r"(?!)")
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
