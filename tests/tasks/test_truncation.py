import logging

import pytest

from tasks.encoders import CAUSAL, MASKED, RTE, SST2, TREC, encoder, example


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
    assert "1 of 2 texts are longer than the maximum of 24 tokens" in caplog.text
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
