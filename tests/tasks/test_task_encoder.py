import pytest
from transformers import AutoTokenizer

from sptune.errors import InputError
from sptune.tasks import Task, TaskEncoder
from tasks.encoders import CAUSAL, MASKED, RTE, SST2, TOPIC, TREC, encoder, example


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


def test_an_end_token_added_by_the_tokenizer_is_removed(tokenizers):
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


def test_a_pair_for_a_causal_classifier_has_a_separator(tokenizers):
    pair = example("entailment", text_a="a film", text_b="a book")
    row = encoder(tokenizers, "gpt2", RTE.as_classifier()).encode([pair])[0]
    assert tokenizers["gpt2"].decode(row["input_ids"]) == "a film\na book"


def test_examples_without_labels_are_encoded_without(tokenizers):
    examples = [example(None), example(None)]
    assert "labels" not in encoder(tokenizers, "bert").encode(examples).column_names
    with pytest.raises(InputError, match="1 of 2 examples have no label"):
        encoder(tokenizers, "bert").encode([example(None), example()])


def test_invalid_examples_are_refused(tokenizers):
    with pytest.raises(InputError, match=r"train.jsonl:7: label 'fine' is not a class .*negative, positive"):
        encoder(tokenizers, "bert").encode([example("fine", "train.jsonl:7")])
    with pytest.raises(InputError, match="no examples"):
        encoder(tokenizers, "bert").encode([])
    with pytest.raises(InputError, match=r"max_length=6 leaves no room.*Choose at least 8"):
        encoder(tokenizers, "bert", max_length=6)
    with pytest.raises(InputError, match="no mask token"):
        TaskEncoder(SST2, tokenizers["gpt2"], max_length=64, causal=False)


def test_many_examples_keep_their_order(tokenizers, monkeypatch):
    monkeypatch.setattr("sptune.tasks.task_encoder.CHUNK", 3)
    texts = [f"film number {index}" for index in range(10)]
    rows = encoder(tokenizers, "bert").encode([example(text=text) for text in texts])
    decoded = [tokenizers["bert"].decode(row["input_ids"]) for row in rows]
    assert all(text in shown for text, shown in zip(texts, decoded, strict=True))


def test_a_gguf_tokenizer_answers_at_the_end_with_words_of_one_token(smollm2_file):
    tokenizer = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    for task in (SST2, TREC, RTE):
        encode = TaskEncoder(task, tokenizer, max_length=64, causal=True)
        assert tokenizer.convert_ids_to_tokens(list(encode.label_token_ids)) == [
            "Ġ" + word for word in task.label_words
        ]
    row = TaskEncoder(TREC, tokenizer, max_length=64, causal=True).encode([example("human", text="who ?")])[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[-3:] == ["ĠQuestion", "Ġtype", ":"]
