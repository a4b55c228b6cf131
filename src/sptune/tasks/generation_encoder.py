"""GenerationEncoder: tokenizes prompts and completions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.chat_format import ChatFormat
from sptune.tasks.completion_collator import CompletionCollator
from sptune.tasks.generation_metrics import IGNORED
from sptune.tasks.generation_task import GenerationExample, GenerationTask
from sptune.tasks.padding import padding_token_id
from sptune.tasks.special_tokens import ending_tokens, plain_text
from sptune.tasks.token_dataset import CHUNK, token_dataset

logger = logging.getLogger(__name__)


class GenerationEncoder:
    """Tokenizes the examples of a generation task; only tokens of completions have labels.

    A prompt and its completion are tokenized one by one and joined as they stand; an end token follows. Messages go
    through the chat template. Of a conversation with several turns of the assistant all have labels if the template
    marks them ({% generation %}), otherwise the last one.

    A prompt is never cut. A completion that is too long loses its end.

    Args:
        task: the task.
        tokenizer: of the backbone, a causal language model.
        max_length: the maximum number of tokens of a prompt with its completion.

    Attributes:
        too_long: the number of examples that the last `encode` cut.
        collator: makes batches from the rows that `encode` returns.
        stop_token_ids: the tokens that end a generated text.
        class_scores: None; the loss is that of the language model.

    Raises:
        InputError: if the tokenizer has no end token or, for messages, no chat template that can be used.
    """

    class_scores = None

    def __init__(self, task: GenerationTask, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.too_long = 0
        self.collator = CompletionCollator(padding_token_id(tokenizer))
        self._chat = ChatFormat(tokenizer) if task.is_chat else None
        self._ending = 0 if task.is_chat else ending_tokens(tokenizer)
        stops = (None if self._chat is None else self._chat.stop_token_id, tokenizer.eos_token_id)
        self.stop_token_ids = [int(one) for one in dict.fromkeys(stops) if one is not None]
        if not self.stop_token_ids:
            raise InputError(
                f"The tokenizer {type(tokenizer).__name__} has no end token, so the model cannot learn where a "
                "completion ends; set its eos_token and save it beside the model."
            )

    def encode(self, examples: Sequence[GenerationExample]) -> Dataset:
        """Tokenize prompts with their completions.

        Args:
            examples: all with completions.

        Returns:
            Rows with `input_ids`, `labels` (-100 at tokens that are not part of a completion) and `length` in tokens.

        Raises:
            InputError: if there are no examples, a completion is missing, or prompts leave no room for one.
        """
        if not examples:
            raise InputError(f"There are no examples to encode for task {self.task.name!r}; give at least one.")
        full, cut = list[int](), list[int]()
        rows = token_dataset(self._encoded_chunks(examples, full, cut))
        self._refuse_full(examples, full)
        self._warn_early_ends(examples)
        self.too_long = len(cut)
        if cut:
            logger.warning(
                "%d of %d examples have more than the maximum of %d tokens (the first: %s); the ends of their "
                "completions were cut.",
                len(cut),
                len(examples),
                self.max_length,
                examples[cut[0]].where,
            )
        return rows

    def _encoded_chunks(
        self, examples: Sequence[GenerationExample], full: list[int], cut: list[int]
    ) -> Iterator[dict[str, list[Any]]]:
        """The columns of `encode`, chunk by chunk.

        Args:
            examples: the examples.
            full: receives the numbers of those whose prompt leaves no room for a completion.
            cut: receives the numbers of those whose completion was cut.
        """
        for start in range(0, len(examples), CHUNK):
            columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
            for number, example in enumerate(examples[start : start + CHUNK], start):
                prompt, earlier, completion = self._parts(example)
                if len(prompt) >= self.max_length:
                    full.append(number)
                elif len(prompt) + len(completion) > self.max_length:
                    cut.append(number)
                tokens, labels = (prompt + completion)[: self.max_length], (earlier + completion)[: self.max_length]
                for name, value in (("input_ids", tokens), ("labels", labels), ("length", len(tokens))):
                    columns[name].append(value)
            yield columns

    def encode_prompts(self, examples: Sequence[GenerationExample]) -> list[list[int]]:
        """The tokens of each prompt, after which a model writes.

        Raises:
            InputError: if a prompt leaves no room for a completion.
        """
        prompts = [self._prompt_tokens(self._texts(example)[0]) for example in examples]
        self._refuse_full(examples, [number for number, tokens in enumerate(prompts) if len(tokens) >= self.max_length])
        return prompts

    def prompt_length(self, example: GenerationExample) -> int:
        """The number of tokens of a prompt."""
        return len(self._prompt_tokens(self._texts(example)[0]))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens; of a turn in a conversation its content."""
        return plain_text(self.tokenizer, tokens) if self._chat is None else self._chat.decode(tokens)

    def _warn_early_ends(self, examples: Sequence[GenerationExample]) -> None:
        """Warn of completions that spell the end token, which are learned up to there."""
        if self._chat is not None:  # messages are broken up where they spell one
            return
        end = str(self.tokenizer.eos_token)
        early = [number for number, one in enumerate(examples) if (one.completion or "").partition(end)[2].strip()]
        if early:
            logger.warning(
                "%d of %d completions contain the end token %r before their end (the first: %s); what follows it was "
                "cut.",
                len(early),
                len(examples),
                end,
                examples[early[0]].where,
            )

    def _refuse_full(self, examples: Sequence[GenerationExample], full: Sequence[int]) -> None:
        if full:
            raise InputError(
                f"{examples[full[0]].where}: the prompt alone has max_length={self.max_length} tokens or more, which "
                f"leaves no room for a completion ({len(full)} such examples). Shorten or remove these, or train with "
                "a larger max_length."
            )

    def _parts(self, example: GenerationExample) -> tuple[list[int], list[int], list[int]]:
        """The tokens of the prompt, their labels, and the tokens of the completion."""
        prompt_text, completion_text = self._texts(example)
        prompt, completion = self._prompt_tokens(prompt_text), self._completion_tokens(completion_text)
        answered = None if self._chat is None else self._chat.answered_tokens(example)
        if answered is None or len(answered) != len(prompt):
            answered = [False] * len(prompt)
        earlier = [token if flag else IGNORED for token, flag in zip(prompt, answered, strict=True)]
        return prompt, earlier, completion

    def _texts(self, example: GenerationExample) -> tuple[str, str]:
        """The texts of prompt and completion."""
        if self._chat is not None:
            return self._chat.texts(example)
        return str(example.prompt), example.completion or ""

    def _prompt_tokens(self, text: str) -> list[int]:
        # A chat template writes all special tokens itself.
        tokens = list(self.tokenizer(text, add_special_tokens=self._chat is None, verbose=False)["input_ids"])
        return tokens[: -self._ending] if self._ending else tokens

    def _completion_tokens(self, text: str) -> list[int]:
        """The tokens of a completion, up to the one that ends it."""
        tokens = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        stop = self.stop_token_ids[0]
        return [*tokens[: tokens.index(stop)], stop] if stop in tokens else [*tokens, stop]
