"""Label words: the token that stands for each class of a verbalizer task."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from sptune.errors import InputError
from sptune.tasks.task import Task

logger = logging.getLogger(__name__)

NEUTRAL_CONTEXT = "it"  # precedes a label word if the template has no text there


def label_token_ids(tokenizer: PreTrainedTokenizerBase, task: Task, causal: bool) -> tuple[int, ...]:
    """The token of each class's label word, as it is tokenized within the template.

    If the tokenizer splits a word into several tokens, the first one is used and a warning is logged.

    Args:
        tokenizer: the tokenizer of the backbone.
        task: a verbalizer task.
        causal: whether the backbone is a causal language model.

    Returns:
        One token id per class.

    Raises:
        InputError: if two classes share a token, or the tokenizer does not know a word.
    """
    assert task.label_words is not None
    context, spaced = task.answer_context(causal)
    pieces = {word: _tokens_in_context(tokenizer, word.strip(), context, spaced) for word in task.label_words}
    first: dict[int, str] = {}
    for label, word in zip(task.labels, task.label_words, strict=True):
        ids = pieces[word]
        shown = " + ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids)) or "no token"
        if not ids or ids[0] == tokenizer.unk_token_id or not str(tokenizer.decode([ids[0]])).strip():
            raise InputError(
                f"Label word {word!r} of class {label!r} is unknown to this tokenizer ({shown}); choose a common "
                "word from its vocabulary."
            )
        if ids[0] in first:
            raise InputError(
                f"Label words {first[ids[0]]!r} and {word!r} begin with the same token of this tokenizer ({shown}), "
                "so their classes cannot be told apart; choose words that begin differently, ideally of one token each."
            )
        first[ids[0]] = word
        if len(ids) > 1:
            logger.warning(
                "Label word %r of class %r is %d tokens (%s) for this tokenizer; only the first is scored. A word of "
                "one token may work better.",
                word,
                label,
                len(ids),
                shown,
            )
    return tuple(first)


def _tokens_in_context(tokenizer: PreTrainedTokenizerBase, word: str, context: str, spaced: bool) -> list[int]:
    """The tokens that a word adds to the text before it."""

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    for before in (context, NEUTRAL_CONTEXT):
        prefix = tokens(before)
        whole = tokens(before + (" " if spaced else "") + word)
        if prefix and whole[: len(prefix)] == prefix:
            return whole[len(prefix) :]
    return tokens(word)
