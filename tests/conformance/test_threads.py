"""A model answers from several threads as it does from one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

THREADS = 8
LENGTHS = [(9, 5), (3, 8), (7, 2), (4, 6)]


def _batches(build_batch, case):
    side = "left" if case.causal else "right"
    return [build_batch(case, lengths, side=side, extra=12 - max(lengths)) for lengths in LENGTHS]


def _assert_the_same_from_threads(answer, batches, rounds):
    expected = [answer(batch) for batch in batches]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(answer, batches * rounds))
    different = sum(not torch.equal(got, expected[i % len(batches)]) for i, got in enumerate(answers))
    assert different == 0, f"{different} of {len(answers)} answers differ"


PLACEMENTS = pytest.mark.parametrize("placement", ["add", "prepend"])


@PLACEMENTS
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_forwards(build_network, build_batch, some_case, prompt_layers, placement):
    network = build_network(some_case, prompt_layers=prompt_layers, placement=placement)

    @torch.no_grad()
    def answer(batch):
        return network(**batch).logits

    _assert_the_same_from_threads(answer, _batches(build_batch, some_case), 60)


@PLACEMENTS
def test_forwards_under_gates_of_their_own(build_network, build_batch, some_case, placement):
    network = build_network(some_case, prompt_layers="search", placement=placement)
    batch = build_batch(some_case)

    @torch.no_grad()
    def answer(gates):
        with network.base_model.gating(gates):
            return network(**batch).logits

    rows = torch.rand(4, 1, len(some_case.candidates), generator=torch.Generator().manual_seed(0))
    _assert_the_same_from_threads(answer, list(rows), 30)


@PLACEMENTS
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_generate(build_network, build_batch, family_case, family, use_cache, placement):
    case = family_case(family)
    network = build_network(case, placement=placement)

    def answer(batch):
        inputs = {name: value for name, value in batch.items() if name != "position_ids"}
        return network.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=use_cache)

    _assert_the_same_from_threads(answer, _batches(build_batch, case), 10)
