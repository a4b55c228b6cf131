"""A text's logits depend on the text alone: not on padding, its side, its amount, or how the mask is given."""

import pytest
import torch

from assertions import assert_same

LENGTHS = (9, 5, 7)


def _alone(network, build_batch, logits_of, case, lengths=LENGTHS, **options):
    """The logits of each text run by itself, without padding and without a mask."""
    rows = []
    for row in range(len(lengths)):
        batch = build_batch(case, lengths, **options)
        real = batch["attention_mask"][row].bool()
        rows.append(logits_of(network, {"input_ids": batch["input_ids"][row][real][None]}))
    return torch.cat(rows)


@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 6), ("left", 0), ("left", 6)])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_padding_does_not_matter(build_network, build_batch, logits_of, case, prompt_layers, side, extra):
    network = build_network(case, prompt_layers=prompt_layers, mixing_rate=0.5)
    padded = logits_of(network, build_batch(case, LENGTHS, side=side, extra=extra))
    assert_same(padded, _alone(network, build_batch, logits_of, case))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_matter_to_any_generator(build_network, build_batch, logits_of, some_case, generator, side):
    network = build_network(some_case, generator=generator)
    padded = logits_of(network, build_batch(some_case, LENGTHS, side=side, extra=4))
    assert_same(padded, _alone(network, build_batch, logits_of, some_case))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_matter_with_position_ids(build_network, build_batch, logits_of, causal_case, side):
    network = build_network(causal_case)
    padded = logits_of(network, build_batch(causal_case, LENGTHS, side=side, extra=6, positions=True))
    assert_same(padded, _alone(network, build_batch, logits_of, causal_case))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_matter_to_classification(build_network, build_batch, logits_of, case, side):
    if side == "left" and not case.causal:
        pytest.skip("these heads read the state at the left edge")
    network = build_network(case, "classifier")
    padded = logits_of(network, build_batch(case, LENGTHS, side=side, extra=4))
    assert_same(padded, _alone(network, build_batch, logits_of, case))


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_a_mask_of_ones_is_no_mask(build_network, build_batch, logits_of, case, prompt_layers):
    network = build_network(case, prompt_layers=prompt_layers)
    batch = build_batch(case, (8, 8))
    masked = logits_of(network, batch)
    del batch["attention_mask"]
    assert_same(masked, logits_of(network, batch))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_the_masks_type_does_not_matter(build_network, build_batch, logits_of, some_case, dtype):
    if some_case.name == "deberta-v3" and dtype is torch.bool:
        pytest.skip("DeBERTa itself takes no boolean mask")
    network = build_network(some_case)
    batch = build_batch(some_case)
    expected = logits_of(network, batch)
    assert_same(logits_of(network, {**batch, "attention_mask": batch["attention_mask"].to(dtype)}), expected)


def test_what_stands_at_padding_does_not_matter(build_network, build_batch, logits_of, case):
    network = build_network(case)
    batch = build_batch(case, LENGTHS, extra=3)
    expected = logits_of(network, batch)
    noise = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 77)
    assert_same(logits_of(network, {**batch, "input_ids": noise}), expected)


def test_embeddings_stand_for_token_ids(build_network, build_batch, logits_of, case):
    if case.name == "roberta":
        pytest.skip("RoBERTa counts positions from token ids")
    network = build_network(case)
    batch = build_batch(case)
    expected = logits_of(network, batch)
    embeddings = network.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        given = network(inputs_embeds=embeddings, **{k: v for k, v in batch.items() if k != "input_ids"}).logits
    assert_same(given[batch["attention_mask"].bool()], expected)


def test_a_text_may_be_as_long_as_the_backbone_takes(build_network, build_batch, logits_of, case):
    network, batch = build_network(case), build_batch(case, (64, 60))
    options = {"use_cache": False} if case.causal else {}  # beyond a sliding window a cache is refused
    attention = getattr(network.base_model._attachment().backbone.layers[0], "attn", None)
    if case.attention == "eager" and "bias" in dict(attention.named_buffers() if attention is not None else ()):
        with pytest.raises(ValueError, match="sdpa"):  # a buffer of transformers 4 is as long as the text alone
            logits_of(network, batch, **options)
    else:
        assert logits_of(network, batch, **options).isfinite().all()
