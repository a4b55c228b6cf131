"""Attention masks with prompts in front of the text, against masks written down by hand."""

import pytest
import torch
from torch import Tensor

from sptune.modeling.prepend.masks import (
    additive_mask,
    extend_mask,
    implied_mask,
    roll_mask,
    scale_attention_to_prompts,
)

LOWEST = torch.finfo(torch.float32).min


def _mask(*rows: str) -> Tensor:
    """A boolean mask (1, 1, queries, keys): a row of characters a query, `1` where it attends."""
    return torch.tensor([[character == "1" for character in row] for row in rows])[None, None]


# Two prompts in front of three tokens of text.

CAUSAL_TEXT = _mask("100", "110", "111")
CAUSAL_PROMPTED = _mask("10000", "11000", "11100", "11110", "11111")
PADDED_TEXT = _mask("110", "110", "110")  # the last token is padding
PADDED_PROMPTED = _mask("11110", "11110", "11110", "11110", "11110")


@pytest.mark.parametrize(
    ("text", "causal", "expected"), [(CAUSAL_TEXT, True, CAUSAL_PROMPTED), (PADDED_TEXT, False, PADDED_PROMPTED)]
)
def test_prompts_become_keys_and_queries(text, causal, expected):
    assert torch.equal(extend_mask(text, 2, causal=causal, with_queries=True), expected)


@pytest.mark.parametrize(
    ("text", "causal", "expected"), [(CAUSAL_TEXT, True, CAUSAL_PROMPTED), (PADDED_TEXT, False, PADDED_PROMPTED)]
)
def test_an_additive_mask_is_extended_like_the_boolean_one(text, causal, expected):
    extended = extend_mask(additive_mask(text, torch.float32), 2, causal=causal, with_queries=True)
    assert torch.equal(extended, additive_mask(expected, torch.float32))


def test_cached_prompts_become_keys_alone():
    step = _mask("0111")  # one new token after three cached ones, of which the first is padding
    assert torch.equal(extend_mask(step, 2, causal=True, with_queries=False), _mask("110111"))


def test_one_row_for_all_queries_stays_one_row_where_every_token_sees_the_same():
    row = _mask("110")
    assert torch.equal(extend_mask(row, 2, causal=False, with_queries=True), _mask("11110"))


def test_one_token_of_causal_text_gets_rows_for_its_prompts():
    assert torch.equal(extend_mask(_mask("1"), 2, causal=True, with_queries=True), _mask("100", "110", "111"))


def test_a_row_of_the_batch_is_extended_as_it_is_alone():
    masks = torch.cat([CAUSAL_TEXT, CAUSAL_TEXT & PADDED_TEXT])
    both = extend_mask(masks, 2, causal=True, with_queries=True)
    for row in range(2):
        alone = extend_mask(masks[row : row + 1], 2, causal=True, with_queries=True)
        assert torch.equal(both[row : row + 1], alone)


def test_no_mask_means_causal_attention_that_goes_on_behind_a_cache():
    device = torch.device("cpu")
    assert torch.equal(implied_mask(3, 0, causal=True, device=device), CAUSAL_TEXT)
    assert torch.equal(implied_mask(2, 1, causal=True, device=device), _mask("110", "111"))
    assert torch.equal(implied_mask(3, 0, causal=False, device=device), _mask("111"))


def test_a_boolean_mask_becomes_an_additive_one_and_an_additive_one_stays():
    additive = additive_mask(_mask("10"), torch.bfloat16)
    assert additive.dtype == torch.bfloat16
    assert additive.flatten().tolist() == [0.0, torch.finfo(torch.bfloat16).min]
    assert additive_mask(additive, torch.float32) is additive


# The inclusion probability


def _attention(mask: Tensor, logits: Tensor) -> Tensor:
    return (logits + mask).softmax(-1)


@pytest.mark.parametrize("inclusion", [0.0, 0.25, 1.0])
def test_attention_to_prompts_is_scaled_by_their_inclusion_probability(inclusion):
    """Additive and multiplicative masks scale alike: v exp(logit) in place of exp(logit), the sum being 1."""
    logits = torch.randn(1, 1, 5, 5)
    v = torch.tensor([inclusion])
    expected = logits.exp()
    expected[..., :2] *= inclusion
    expected = expected / expected.sum(-1, keepdim=True)
    additive = scale_attention_to_prompts(torch.zeros(1, 1, 1, 5), v, 2, multiplicative=False)
    torch.testing.assert_close(_attention(additive, logits), expected)
    weights = scale_attention_to_prompts(torch.ones(1, 1, 1, 5), v, 2, multiplicative=True)
    weighted = logits.softmax(-1) * weights
    torch.testing.assert_close(weighted / weighted.sum(-1, keepdim=True), expected)


def test_each_example_has_its_own_inclusion_probability():
    v = torch.tensor([0.5, 1.0])
    scaled = scale_attention_to_prompts(torch.zeros(1, 1, 1, 3), v, 1, multiplicative=False)
    assert scaled.shape == (2, 1, 1, 3)
    torch.testing.assert_close(scaled[:, 0, 0, 0], v.log())
    assert not scaled[..., 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_that_are_not_included_leave_the_mask_finite(dtype):
    scaled = scale_attention_to_prompts(torch.zeros(1, 1, 1, 3, dtype=dtype), torch.zeros(1), 2, multiplicative=False)
    assert scaled.dtype == dtype
    assert scaled.isfinite().all()
    assert scaled.softmax(-1).flatten().tolist() == [0.0, 0.0, 1.0]


def test_the_inclusion_probability_gets_a_gradient():
    v = torch.tensor([0.5], requires_grad=True)
    mask = scale_attention_to_prompts(torch.zeros(1, 1, 1, 3), v, 1, multiplicative=False)
    _attention(mask, torch.zeros(1, 1, 1, 3))[..., 0].sum().backward()
    torch.testing.assert_close(v.grad, torch.tensor([2 / 2.5**2]))  # d/dv of v / (v + 2)


# Padding in front


def test_rolling_a_mask_moves_padding_behind_the_text():
    left = _mask("000", "011", "011")
    assert torch.equal(roll_mask(left, torch.tensor([1])), _mask("110", "110", "000"))
    assert roll_mask(left, None) is left
