"""The penalty of SPT-DARTS is what its formula says."""

import pytest
import torch
from torch import distributions
from torch.nn import functional

from sptune.search.consistency import draw_layer_masks, predictions_distance, states_distance, symmetric_kl


def test_masks_drop_layers_independently_with_the_given_probability():
    masks = draw_layer_masks(3, 0.7, 2000, torch.Generator().manual_seed(0)).flatten(0, 1)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.mean(0).tolist() == pytest.approx([0.3] * 3, abs=0.03)
    both = (masks[:, 0] * masks[:, 1]).mean().item()
    assert both == pytest.approx(0.09, abs=0.02)


def test_symmetric_kl_is_the_mean_of_both_divergences():
    first, second = torch.randn(6, 4), torch.randn(6, 4)
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = functional.kl_div(q, p, log_target=True, reduction="batchmean") + functional.kl_div(
        p, q, log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(symmetric_kl(first, second), both / 2)
    assert symmetric_kl(first, first).item() == 0


def test_predictions_of_labels_and_numbers_are_compared_as_their_distributions():
    first, second = torch.randn(6, 4), torch.randn(6, 4)
    p, q = distributions.Bernoulli(logits=first), distributions.Bernoulli(logits=second)
    both = distributions.kl_divergence(p, q) + distributions.kl_divergence(q, p)
    measured = predictions_distance("multi_label_classification", first, second)
    torch.testing.assert_close(measured, both.mean() / 2)
    p, q = (distributions.Normal(run[:, :1], 0.5**0.5) for run in (first, second))
    both = distributions.kl_divergence(p, q) + distributions.kl_divergence(q, p)
    torch.testing.assert_close(predictions_distance("regression", first[:, :1], second[:, :1]), both.mean() / 2)


def test_states_are_compared_at_real_tokens_only():
    first, second = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    short = (first[0, :3] - second[0, :3]).square().mean()
    full = (first[1] - second[1]).square().mean()
    torch.testing.assert_close(states_distance(first, second, mask), (short + full) / 2)
