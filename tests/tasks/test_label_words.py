import logging

import pytest

from sptune.errors import InputError
from sptune.tasks import Task
from tasks.encoders import CAUSAL, MASKED, TREC, encoder, example


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("bert", ["terrible", "great"]),
        ("roberta", ["Ġterrible", "Ġgreat"]),
        ("gpt2", ["Ġterrible", "Ġgreat"]),
        ("llama", ["▁terrible", "▁great"]),
    ],
)
def test_label_words_are_tokenized_within_the_template(tokenizers, family, tokens):
    ids = encoder(tokenizers, family).label_token_ids
    assert tokenizers[family].convert_ids_to_tokens(list(ids)) == tokens


@pytest.mark.parametrize("family", MASKED + CAUSAL)
def test_the_label_word_stands_at_the_scored_position(tokenizers, family):
    tokenizer, encoded = tokenizers[family], encoder(tokenizers, family).encode([example()])[0]["input_ids"]
    filled = tokenizer("a film that is better than the book . It was great" + (" ." if family in MASKED else ""))
    position = encoded.index(tokenizer.mask_token_id) if family in MASKED else len(encoded)
    assert filled["input_ids"][position] == encoder(tokenizers, family).label_token_ids[1]
    assert filled["input_ids"][:position] == encoded[:position]


def test_label_words_at_the_start_have_a_leading_space(tokenizers):
    ids = encoder(tokenizers, "roberta", TREC).label_token_ids
    assert all(token.startswith("Ġ") for token in tokenizers["roberta"].convert_ids_to_tokens(list(ids)))


def test_label_words_have_no_leading_space_if_the_template_has_none(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text}\n[MASK]", None, ("Yes", "No"))
    ids = encoder(tokenizers, "gpt2", task).label_token_ids
    assert not any("Ġ" in token for token in tokenizers["gpt2"].convert_ids_to_tokens(list(ids)))


def test_the_first_of_several_tokens_is_used_with_a_warning(tokenizers, caplog):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("greatest", "terrible"))
    with caplog.at_level(logging.WARNING):
        ids = encoder(tokenizers, "gpt2", task).label_token_ids
    assert "'greatest'" in caplog.text
    assert "'terrible'" not in caplog.text
    assert len(set(ids)) == 2


def test_label_words_with_the_same_first_token_are_refused(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "greatest"))
    with pytest.raises(InputError, match=r"'great' and 'greatest' begin with the same token"):
        encoder(tokenizers, "gpt2", task)


def test_unknown_label_words_are_refused(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "🜚"))
    with pytest.raises(InputError, match=r"🜚.*unknown"):
        encoder(tokenizers, "bert", task)
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "Xylophone"))
    with pytest.raises(InputError, match=r"'Xylophone'.*unknown.*'▁' \+ 'X'"):
        encoder(tokenizers, "llama", task)
