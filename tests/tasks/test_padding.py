import pytest
import torch

from tasks.encoders import SST2, encoder, example


@pytest.mark.parametrize(("family", "left"), [("bert", False), ("roberta", False), ("gpt2", True), ("llama", True)])
def test_batches_are_padded_to_the_longest_example_on_the_side_of_the_model(tokenizers, family, left):
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


def test_the_end_token_replaces_a_missing_padding_token(tokenizers):
    tokenizer = tokenizers["gpt2"]
    size = len(tokenizer)
    encode = encoder(tokenizers, "gpt2")
    batch = encode.collator(list(encode.encode([example(text="a"), example(text="a film that is long")])))
    assert batch["input_ids"][0, 0] == tokenizer.eos_token_id
    assert len(tokenizer) == size
    assert tokenizer.pad_token is None


def test_a_causal_classifier_is_padded_on_the_right(tokenizers):
    encode = encoder(tokenizers, "gpt2", SST2.as_classifier())
    batch = encode.collator(list(encode.encode([example(text="a"), example(text="a film that is long")])))
    assert batch["attention_mask"][0, 0] == 1
    assert isinstance(batch["labels"], torch.Tensor)
