"""Nothing flows backwards in a causal model, labels included."""

import pytest
import torch

from assertions import assert_same

IGNORED = -100


def _logits(network, batch):
    with torch.no_grad():
        return network(**batch).logits


def _other_token(token_ids, row, position):
    changed = token_ids.clone()
    changed[row, position] = 5 + (changed[row, position] - 4) % 90
    return changed


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_a_token_does_not_reach_the_logits_before_it(build_network, build_batch, causal_case, prompt_layers, masked):
    network = build_network(causal_case, prompt_layers=prompt_layers, generator="static")
    batch = build_batch(causal_case, (8, 8))
    if not masked:
        del batch["attention_mask"]
    before = _logits(network, batch)
    after = _logits(network, {**batch, "input_ids": _other_token(batch["input_ids"], 0, 5)})
    assert_same(after[:, :5], before[:, :5])
    assert (after[0, 5:] - before[0, 5:]).abs().max() > 1e-3


def _labelled(batch, source_length):
    """Labels on everything after the first tokens of each text; padding and source are ignored."""
    real = batch["attention_mask"].bool()
    number = batch["attention_mask"].cumsum(-1) - 1
    return {**batch, "labels": batch["input_ids"].masked_fill(~real | (number < source_length), IGNORED)}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_a_target_does_not_reach_the_logits_before_it(build_network, build_batch, causal_case, prompt_layers, side):
    _check_targets(build_network(causal_case, prompt_layers=prompt_layers), build_batch, causal_case, side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_no_generator_looks_at_targets(build_network, build_batch, some_causal_case, generator, side):
    _check_targets(build_network(some_causal_case, generator=generator), build_batch, some_causal_case, side)


def _check_targets(network, build_batch, case, side):
    batch = _labelled(build_batch(case, (9, 6), side=side), source_length=3)
    before = _logits(network, batch)
    targets, real = batch["labels"] != IGNORED, batch["attention_mask"].bool()
    for row, position in targets.nonzero().tolist():
        token_ids = _other_token(batch["input_ids"], row, position)
        after = _logits(network, {**batch, "input_ids": token_ids, "labels": token_ids.masked_fill(~targets, IGNORED)})
        earlier = real.clone()
        earlier[row, position:] = False
        assert_same(after[earlier], before[earlier])


def test_labels_choose_the_source_and_change_nothing_else(build_network, build_batch, logits_of, causal_case):
    """With every label ignored, the source is the whole text, as it is without labels."""
    network = build_network(causal_case)
    batch = build_batch(causal_case)
    ignored = {**batch, "labels": torch.full_like(batch["input_ids"], IGNORED)}
    assert_same(logits_of(network, ignored), logits_of(network, batch))


def test_static_prompts_ignore_labels(build_network, build_batch, logits_of, causal_case):
    network = build_network(causal_case, generator="static")
    batch = build_batch(causal_case)
    assert_same(logits_of(network, _labelled(batch, 3)), logits_of(network, batch))


def test_text_without_a_source_gives_finite_logits(build_network, build_batch, some_causal_case, generator):
    """Labels on every token, as in plain language modeling: no source is left to look at."""
    network = build_network(some_causal_case, generator=generator)
    batch = _labelled(build_batch(some_causal_case), 0)
    outputs = network(**batch)
    assert outputs.logits.isfinite().all()
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_classification_reads_the_whole_text(build_network, build_batch, causal_case):
    """A class label is no token: it hides nothing from the generators."""
    network = build_network(causal_case, "classifier")
    batch = build_batch(causal_case)
    assert_same(_logits(network, {**batch, "labels": torch.tensor([0, 1, 2])}), _logits(network, batch))
