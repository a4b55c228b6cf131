"""Special tokens of a tokenizer: those it adds after a text, text without them, and texts that spell one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def ending_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of special tokens that the tokenizer adds after a text."""
    special = tokenizer("it", return_special_tokens_mask=True)["special_tokens_mask"]
    return len(special) - max(index for index, flag in enumerate(special) if not flag) - 1


def plain_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of tokens without special ones, with spaces as the tokens have them."""
    # Some tokenizers remove spaces before punctuation by default, so that no text would equal its completion.
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def special_token_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that finds special tokens in text."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {token for token in [*tokenizer.all_special_tokens, *added] if len(token) > 1}
    if not tokens:
        return re.compile(r"(?!)")
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


def broken_up(text: str, pattern: re.Pattern[str]) -> str:
    """The text with a space inside each special token that it spells, so that they stay ordinary text."""
    return pattern.sub(lambda found: found[0][0] + " " + found[0][1:], text)
