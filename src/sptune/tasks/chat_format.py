"""ChatFormat: turns conversations into text by a tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.generation_task import ASSISTANT, GenerationExample, Message
from sptune.tasks.special_tokens import broken_up, plain_text, special_token_pattern

# A template with this block says which tokens are the assistant's.
ASSISTANT_BLOCK = re.compile(r"\{%-?\s*generation\b")
# An answer that shows what a template writes around each.
PROBE = "Qx7"


class ChatFormat:
    """Turns conversations into text and tokens by the chat template of a tokenizer.

    Args:
        tokenizer: the backbone's.

    Attributes:
        stop_token_id: the token that ends the assistant's turn; None if the template writes no special token there.

    Raises:
        InputError: if the tokenizer has no chat template, or the template cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                "The tokenizer has no chat template, so messages cannot be turned into text. Choose a model that was "
                "tuned on instructions, or write your data as columns 'prompt' and 'completion'."
            )
        self.tokenizer = tokenizer
        self._special = special_token_pattern(tokenizer)
        self._marks_assistant = ASSISTANT_BLOCK.search(str(tokenizer.chat_template)) is not None
        probe = GenerationExample((Message("user", "a"),), PROBE, "a conversation of one question and one answer")
        answer = self.texts(probe)[1]
        start = answer.rfind(PROBE)
        if start < 0:
            raise InputError(
                "The chat template of the tokenizer leaves out what the assistant writes, so it cannot be learned; "
                "choose another model, or write your data as columns 'prompt' and 'completion'."
            )
        self._before, after = self._tokens(answer[:start]), self._tokens(answer[start + len(PROBE) :])
        special = set(tokenizer.all_special_ids)
        self.stop_token_id = next((token for token in after if token in special), None)
        self._after = after if self.stop_token_id is None else after[: after.index(self.stop_token_id)]

    def texts(self, example: GenerationExample) -> tuple[str, str]:
        """The text of the prompt, up to where the assistant begins to write, and the text of its turn.

        The second is empty if the completion is unknown.

        Raises:
            InputError: if the template refuses the conversation, or changes what precedes an answer.
        """
        prompt = self._render(example.prompt, example, add_generation_prompt=True)
        if example.completion is None:
            return prompt, ""
        whole = self._render((*example.prompt, Message(ASSISTANT, example.completion)), example)
        if not whole.startswith(prompt):
            raise InputError(
                f"{example.where}: the chat template writes the conversation before the assistant's turn in another "
                "way once this turn is there, so the turn cannot be learned alone. Write your data as columns "
                "'prompt' and 'completion', or choose another model."
            )
        return prompt, whole[len(prompt) :]

    def decode(self, tokens: Sequence[int]) -> str:
        """The content of a turn that a model wrote.

        Some templates write text of their own around the content, such as an empty block of thoughts, which a model
        learns with it.

        Args:
            tokens: without the one that ends the turn.
        """
        before, after = plain_text(self.tokenizer, self._before), plain_text(self.tokenizer, self._after)
        return plain_text(self.tokenizer, tokens).removeprefix(before).removesuffix(after)

    def answered_tokens(self, example: GenerationExample) -> list[bool] | None:
        """Which tokens of the prompt are earlier turns of the assistant; None if the template does not mark them."""
        if not self._marks_assistant or isinstance(example.prompt, str):
            return None
        encoded: Any = self.tokenizer.apply_chat_template(
            self._plain(example.prompt),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return [bool(flag) for flag in encoded["assistant_masks"]]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, messages: Any, example: GenerationExample, **options: Any) -> str:
        try:
            text = self.tokenizer.apply_chat_template(self._plain(messages), tokenize=False, **options)
        except Exception as error:  # a template is a program, though transformers runs it in a sandbox
            raise InputError(
                f"{example.where}: the chat template of the tokenizer refuses this conversation "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); write its roles in the order "
                "that the template expects, or choose another model."
            ) from error
        return str(text)

    def _plain(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """The messages as the template takes them; special tokens that they spell stay ordinary text."""
        return [{"role": one.role, "content": broken_up(one.content, self._special)} for one in messages]
