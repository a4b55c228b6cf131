import logging

import pytest
import torch
from transformers import AutoTokenizer

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_TASKS, Example, Task, TaskEncoder

SST2, TREC, RTE = (BENCHMARK_TASKS[name] for name in ("sst2", "trec", "rte"))
TOPIC = Task("topic", "verbalizer", ("text",), "label", ("a", "b"), "{text} . It was [MASK] .", None, ("Yes", "No"))
MASKED = ("bert", "roberta")
CAUSAL = ("gpt2", "llama")


def example(label="positive", where="train.jsonl:1", **fields):
    return Example(fields or {"text": "a film that is better than the book"}, label, where)


def encoder(tokenizers, family, task=SST2, max_length=64):
    return TaskEncoder(task, tokenizers[family], max_length=max_length, causal=family in CAUSAL)


# Label words


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        ("bert", ["terrible", "great"]),
        ("roberta", ["Ġterrible", "Ġgreat"]),
        ("gpt2", ["Ġterrible", "Ġgreat"]),
        ("llama", ["▁terrible", "▁great"]),
    ],
)
def test_label_words_are_the_tokens_that_come_out_in_the_template(tokenizers, family, tokens):
    ids = encoder(tokenizers, family).label_token_ids
    assert tokenizers[family].convert_ids_to_tokens(list(ids)) == tokens


@pytest.mark.parametrize("family", MASKED + CAUSAL)
def test_the_filled_in_template_holds_the_label_word_where_it_is_scored(tokenizers, family):
    tokenizer, encoded = tokenizers[family], encoder(tokenizers, family).encode([example()])[0]["input_ids"]
    filled = tokenizer("a film that is better than the book . It was great" + (" ." if family in MASKED else ""))
    position = encoded.index(tokenizer.mask_token_id) if family in MASKED else len(encoded)
    assert filled["input_ids"][position] == encoder(tokenizers, family).label_token_ids[1]
    assert filled["input_ids"][:position] == encoded[:position]


def test_words_at_the_beginning_have_a_leading_space_too(tokenizers):
    ids = encoder(tokenizers, "roberta", TREC).label_token_ids
    assert all(token.startswith("Ġ") for token in tokenizers["roberta"].convert_ids_to_tokens(list(ids)))


def test_a_word_without_a_space_before_it_has_none(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text}\n[MASK]", None, ("Yes", "No"))
    ids = encoder(tokenizers, "gpt2", task).label_token_ids
    assert not any("Ġ" in token for token in tokenizers["gpt2"].convert_ids_to_tokens(list(ids)))


def test_a_word_of_several_tokens_is_stood_for_by_its_first_with_a_warning(tokenizers, caplog):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("greatest", "terrible"))
    with caplog.at_level(logging.WARNING):
        ids = encoder(tokenizers, "gpt2", task).label_token_ids
    assert "'greatest'" in caplog.text
    assert "'terrible'" not in caplog.text
    assert len(set(ids)) == 2


def test_words_that_begin_alike_are_refused(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "greatest"))
    with pytest.raises(InputError, match=r"'great' and 'greatest' begin with the same token"):
        encoder(tokenizers, "gpt2", task)


def test_a_word_the_vocabulary_does_not_know_is_refused(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "🜚"))
    with pytest.raises(InputError, match=r"🜚.*unknown"):
        encoder(tokenizers, "bert", task)
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text} [MASK]", None, ("great", "Xylophone"))
    with pytest.raises(InputError, match=r"'Xylophone'.*unknown.*'▁' \+ 'X'"):
        encoder(tokenizers, "llama", task)


# Inputs


@pytest.mark.parametrize("family", MASKED)
def test_a_masked_input_holds_one_mask_and_the_special_tokens_around_it(tokenizers, family):
    row = encoder(tokenizers, family, TREC).encode([example("human", text="who wrote it ?")])[0]
    tokenizer = tokenizers[family]
    assert row["input_ids"].count(tokenizer.mask_token_id) == 1
    assert row["input_ids"][:2] == [tokenizer.cls_token_id, tokenizer.mask_token_id]
    assert row["input_ids"][-1] == tokenizer.sep_token_id
    assert row["length"] == len(row["input_ids"]) == len(row["attention_mask"])
    assert row["labels"] == TREC.labels.index("human")


@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_input_ends_where_the_answer_begins(tokenizers, family, monkeypatch):
    # GPT-2 would add the embedding of a token to each position, if a tokenizer that offers types were asked for them.
    monkeypatch.setattr(tokenizers[family], "model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    row = encoder(tokenizers, family, TREC).encode([example("human", text="who wrote it ?")])[0]
    assert tokenizers[family].decode(row["input_ids"], skip_special_tokens=True).strip().endswith("Question type:")
    assert "token_type_ids" not in row


def test_an_end_token_that_the_tokenizer_adds_is_taken_off_again(tokenizers):
    row = TaskEncoder(TOPIC, tokenizers["roberta"], max_length=64, causal=True).encode([example("a")])[0]
    assert tokenizers["roberta"].convert_ids_to_tokens(row["input_ids"])[-1] == "Ġwas"
    assert len(row["attention_mask"]) == len(row["input_ids"])


@pytest.mark.parametrize("family", MASKED + CAUSAL)
def test_text_that_looks_like_a_special_token_stays_text(tokenizers, family):
    tokenizer = tokenizers[family]
    nasty = "what [MASK] is <mask> this </s> <|endoftext|> [SEP] <s> ?"
    row = encoder(tokenizers, family).encode([example(text=nasty)])[0]
    plain = encoder(tokenizers, family).encode([example(text="plain")])[0]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert [token for token in row["input_ids"] if token in special] == [
        token for token in plain["input_ids"] if token in special
    ]


def test_a_template_may_hold_special_tokens(tokenizers):
    task = Task("x", "verbalizer", ("text",), "label", ("a", "b"), "{text}<|endoftext|>[MASK]", None, ("Yes", "No"))
    row = encoder(tokenizers, "gpt2", task).encode([example("a")])[0]
    assert row["input_ids"][-1] == tokenizers["gpt2"].eos_token_id


def test_a_pair_for_an_encoder_is_a_pair_of_its_tokenizer(tokenizers):
    pair = example("entailment", text_a="a film", text_b="a book")
    row = encoder(tokenizers, "bert", RTE.as_classifier()).encode([pair])[0]
    expected = tokenizers["bert"]("a film", "a book")
    assert row["input_ids"] == expected["input_ids"]
    assert row["token_type_ids"] == expected["token_type_ids"]


def test_a_pair_for_a_causal_classifier_is_kept_apart(tokenizers):
    pair = example("entailment", text_a="a film", text_b="a book")
    row = encoder(tokenizers, "gpt2", RTE.as_classifier()).encode([pair])[0]
    assert tokenizers["gpt2"].decode(row["input_ids"]) == "a film\na book"


def test_examples_without_labels_are_encoded_without(tokenizers):
    examples = [example(None), example(None)]
    assert "labels" not in encoder(tokenizers, "bert").encode(examples).column_names
    with pytest.raises(InputError, match="1 of 2 examples have no label"):
        encoder(tokenizers, "bert").encode([example(None), example()])


def test_what_cannot_be_encoded_is_refused(tokenizers):
    with pytest.raises(InputError, match=r"train.jsonl:7: label 'fine' is not a class .*negative, positive"):
        encoder(tokenizers, "bert").encode([example("fine", "train.jsonl:7")])
    with pytest.raises(InputError, match="no examples"):
        encoder(tokenizers, "bert").encode([])
    with pytest.raises(InputError, match=r"max_length=6 leaves no room.*Choose at least 8"):
        encoder(tokenizers, "bert", max_length=6)
    with pytest.raises(InputError, match="no mask token"):
        TaskEncoder(SST2, tokenizers["gpt2"], max_length=64, causal=False)


def test_many_examples_keep_their_order(tokenizers, monkeypatch):
    monkeypatch.setattr("sptune.tasks.encoding.CHUNK", 3)
    texts = [f"film number {index}" for index in range(10)]
    rows = encoder(tokenizers, "bert").encode([example(text=text) for text in texts])
    decoded = [tokenizers["bert"].decode(row["input_ids"]) for row in rows]
    assert all(text in shown for text, shown in zip(texts, decoded, strict=True))


# Long texts


@pytest.mark.parametrize("family", MASKED + CAUSAL)
@pytest.mark.parametrize("task", [SST2, TREC], ids=lambda task: task.name)
def test_only_text_is_cut(tokenizers, family, task, caplog):
    encode = encoder(tokenizers, family, task, max_length=24)
    whole = encoder(tokenizers, family, task, max_length=500)
    long = example(task.labels[0], "train.jsonl:9", text="a film that is better than the book , and " * 20)
    short = example(task.labels[0], text="a film")
    with caplog.at_level(logging.WARNING):
        rows = encode.encode([short, long])
    assert encode.too_long == 1
    assert "1 of 2 texts are longer than the 24 tokens" in caplog.text
    assert "train.jsonl:9" in caplog.text
    assert len(rows[1]["input_ids"]) == len(rows[1]["attention_mask"]) == 24
    assert rows[0]["input_ids"] == whole.encode([short])[0]["input_ids"]
    # What is left is the beginning of the whole input, then the template's own end.
    full, cut = whole.encode([long])[0]["input_ids"], rows[1]["input_ids"]
    behind = {("sst2", True): " . It was", ("sst2", False): " . It was [MASK] .", ("trec", True): " Question type:"}
    tail = behind.get((task.name, family in CAUSAL), "").replace("[MASK]", str(tokenizers[family].mask_token))
    special = 1 if family in MASKED else 0
    tail_length = len(tokenizers[family]("a" + tail)["input_ids"]) - len(tokenizers[family]("a")["input_ids"]) + special
    assert cut == full[: 24 - tail_length] + full[len(full) - tail_length :]
    encode.encode([short])
    assert encode.too_long == 0


def test_the_longer_text_of_a_pair_is_cut_first(tokenizers):
    encode = encoder(tokenizers, "bert", RTE, max_length=30)
    row = encode.encode([example("entailment", text_a="a b c", text_b="film " * 100)])[0]
    shown = tokenizers["bert"].decode(row["input_ids"])
    assert "a b c ? [MASK]" in shown.replace("c?", "c ?")
    assert 10 < shown.count("film") < 30


@pytest.mark.parametrize("family", MASKED + CAUSAL)
def test_a_classifier_cuts_too(tokenizers, family):
    encode = encoder(tokenizers, family, RTE.as_classifier(), max_length=20)
    rows = encode.encode(
        [example("entailment", text_a="a film " * 50, text_b="a book"), example("entailment", text_a="a", text_b="b")]
    )
    assert encode.too_long == 1
    assert len(rows[0]["input_ids"]) == 20
    assert "book" in tokenizers[family].decode(rows[0]["input_ids"])


# Batches


@pytest.mark.parametrize(("family", "left"), [("bert", False), ("roberta", False), ("gpt2", True), ("llama", True)])
def test_batches_are_padded_to_their_longest_on_the_right_side(tokenizers, family, left):
    encode = encoder(tokenizers, family)
    rows = encode.encode([example(text="a film"), example("negative", text="a film that is better than the book")])
    batch = encode.collator([rows[0], rows[1]])
    lengths = [row["length"] for row in rows]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    real = batch["input_ids"][0, -lengths[0] :] if left else batch["input_ids"][0, : lengths[0]]
    assert real.tolist() == rows[0]["input_ids"]
    assert batch["labels"].tolist() == [1, 0]
    assert "length" not in batch


def test_a_missing_padding_token_is_replaced_by_the_end_token_without_a_new_one(tokenizers):
    tokenizer = tokenizers["gpt2"]
    size = len(tokenizer)
    encode = encoder(tokenizers, "gpt2")
    batch = encode.collator(list(encode.encode([example(text="a"), example(text="a film that is long")])))
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id
    assert len(tokenizer) == size
    assert tokenizer.pad_token is None


def test_a_causal_classifier_is_padded_behind_where_positions_begin_at_the_text(tokenizers):
    encode = encoder(tokenizers, "gpt2", SST2.as_classifier())
    batch = encode.collator(list(encode.encode([example(text="a"), example(text="a film that is long")])))
    assert batch["attention_mask"][0, 0] == 1
    assert isinstance(batch["labels"], torch.Tensor)


def test_a_gguf_tokenizer_answers_at_the_end_with_words_of_one_token(smollm2_file):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    for task in (SST2, TREC, RTE):
        encode = TaskEncoder(task, tokenizer, max_length=64, causal=True)
        assert tokenizer.convert_ids_to_tokens(list(encode.label_token_ids)) == [
            "Ġ" + word for word in task.label_words
        ]
    row = TaskEncoder(TREC, tokenizer, max_length=64, causal=True).encode([example("human", text="who ?")])[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[-3:] == ["ĠQuestion", "Ġtype", ":"]
