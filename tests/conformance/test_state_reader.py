"""Layers below the first prompt layer may be passed over where their result is known; nothing else changes."""

import pytest
import torch

from sptune.training.caching.activation_cache import ActivationCache
from sptune.training.caching.state_reader import StateReader
from sptune.training.caching.state_sources import CachedTexts
from sptune.training.caching.token_table import TokenTable

LENGTHS = (9, 5, 7)


def _cache(network, batch):
    """A cache of the batch's texts, as a dataset of unpadded examples."""
    mask = batch["attention_mask"].bool()
    examples = [{"input_ids": ids[real].tolist()} for ids, real in zip(batch["input_ids"], mask, strict=True)]
    layer = network.base_model.generator_layers[0]
    return ActivationCache(layer, TokenTable.of([examples]), 32, torch.float32)


def _reading(network, source):
    """One reader a network, as a trainer has it: it learns from the first forward what a block returns."""
    if not hasattr(network, "reader"):
        backbone = network.base_model.backbone
        network.reader = StateReader(backbone.base_model, backbone.layers)
    return network.reader.reading(source)


def _loss_and_gradients(network, batch, source=None):
    network.zero_grad()
    network.train()
    if source is None:
        logits = network(**batch).logits
    else:
        with _reading(network, source):
            logits = network(**batch).logits
    real = logits if logits.dim() == 2 else logits[batch["attention_mask"].bool()]
    loss = real.square().mean()
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_losses_and_gradients_are_the_same(build_network, build_batch, case, side, head):
    if head == "classifier" and side == "left" and not case.causal:
        pytest.skip("these heads read the state at the left edge")
    network = build_network(case, head, prompt_layers=[2, 3])
    batch = build_batch(case, LENGTHS, side=side, extra=2)
    loss, gradients = _loss_and_gradients(network, batch)
    cache = _cache(network, batch)
    rows = torch.arange(3)
    assert not any(cache.holds(row) for row in rows)
    _loss_and_gradients(network, batch, CachedTexts(cache))
    # Where absolute positions are counted from the left edge, padding there leaves states that no cache can keep.
    rotary = network.base_model._attachment().prepend.backbone.rotary is not None
    assert cache.holds(rows) == (side == "right" or rotary or "position_ids" in batch)
    order = torch.tensor([2, 0])
    again, _ = _loss_and_gradients(network, {name: value[order] for name, value in batch.items()}, CachedTexts(cache))
    alone, _ = _loss_and_gradients(network, {name: value[order] for name, value in batch.items()})
    torch.testing.assert_close(again, alone, atol=0, rtol=1e-5)
    cached_loss, cached_gradients = _loss_and_gradients(network, batch, CachedTexts(cache))
    torch.testing.assert_close(cached_loss, loss, atol=0, rtol=1e-5)
    torch.testing.assert_close(cached_gradients, gradients, atol=1e-6, rtol=1e-4)


def test_layers_below_do_not_run_where_their_result_is_known(build_network, build_batch, case):
    network = build_network(case, prompt_layers=[2, 3])
    batch = build_batch(case)
    cache, ran = _cache(network, batch), []
    for index, block in enumerate(network.base_model._attachment().backbone.layers):
        block.base_layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    for _ in range(2):
        _loss_and_gradients(network, batch, CachedTexts(cache))
    assert ran == [0, 1, 2, 3, 2, 3]


def test_a_search_network_reads_below_its_lowest_candidate(build_network, build_batch, case):
    network = build_network(case, prompt_layers="search", candidate_layers=[2, 3])
    batch = build_batch(case)
    loss, gradients = _loss_and_gradients(network, batch)
    cache = _cache(network, batch)
    for _ in range(2):
        cached_loss, cached_gradients = _loss_and_gradients(network, batch, CachedTexts(cache))
    torch.testing.assert_close(cached_loss, loss, atol=0, rtol=1e-5)
    torch.testing.assert_close(cached_gradients, gradients, atol=1e-6, rtol=1e-4)


def test_other_tokens_are_computed_in_full(build_network, build_batch, logits_of, some_case):
    network = build_network(some_case, prompt_layers=[2, 3])
    batch = build_batch(some_case)
    cache = _cache(network, batch)
    _loss_and_gradients(network, batch, CachedTexts(cache))
    network.eval()
    batch["input_ids"][1, 0] += 1
    expected = logits_of(network, batch)
    with _reading(network, CachedTexts(cache)):
        assert torch.equal(logits_of(network, batch), expected)


def test_a_disabled_adapter_is_the_backbone(build_network, build_backbone, build_batch, logits_of, some_case):
    network = build_network(some_case, prompt_layers=[2, 3])
    batch = build_batch(some_case)
    cache = _cache(network, batch)
    _loss_and_gradients(network, batch, CachedTexts(cache))
    network.eval()
    expected = logits_of(build_backbone(some_case), batch)
    with _reading(network, CachedTexts(cache)), network.disable_adapter():
        torch.testing.assert_close(logits_of(network, batch), expected, atol=1e-6, rtol=0)


def test_checkpointing_reads_the_cache(build_network, build_batch, case):
    network = build_network(case, prompt_layers=[2, 3])
    batch = build_batch(case)
    _, expected = _loss_and_gradients(network, batch)
    cache = _cache(network, batch)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for _ in range(2):
        _, gradients = _loss_and_gradients(network, batch, CachedTexts(cache))
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)
