from collections import Counter

import pytest
import torch
from torch.nn import functional

from sptune.search.bilevel import draw_layer_masks, states_distance, symmetric_kl
from sptune.search.data_split import split_halves


def class_counts(labels, indices):
    return Counter(labels[index] for index in indices)


@pytest.mark.parametrize("fraction", [0.5, 0.3])
def test_the_halves_share_every_class_and_hold_each_example_once(fraction):
    labels = [0] * 40 + [1] * 20 + [2] * 7
    weight_half, gate_half = split_halves(labels, 67, gate_fraction=fraction, seed=1)
    assert sorted(weight_half + gate_half) == list(range(67))
    assert len(gate_half) == round(67 * fraction)
    counts = class_counts(labels, gate_half)
    for label, size in Counter(labels).items():
        assert abs(counts[label] - size * fraction) <= 1


def test_a_class_of_one_example_stays_with_the_weights():
    labels = [0] * 20 + [1] * 2 + [2] * 2
    for seed in range(5):
        weight_half, gate_half = split_halves(labels, 24, gate_fraction=0.7, seed=seed)
        assert {labels[index] for index in weight_half} == {0, 1, 2}
        assert len(gate_half) == 17
    weight_half, gate_half = split_halves([0] * 10 + [1], 11, gate_fraction=0.5, seed=0)
    assert 10 in weight_half
    assert len(gate_half) == 6 or len(gate_half) == 5


@pytest.mark.parametrize("labels", [None, [0, 1]])
def test_neither_half_is_empty(labels):
    weight_half, gate_half = split_halves(labels, 2, gate_fraction=0.01, seed=0)
    assert len(weight_half) == len(gate_half) == 1


def test_the_split_depends_on_the_seed_alone():
    labels = [index % 3 for index in range(30)]
    first = split_halves(labels, 30, gate_fraction=0.5, seed=4)
    assert split_halves(labels, 30, gate_fraction=0.5, seed=4) == first
    assert split_halves(labels, 30, gate_fraction=0.5, seed=5) != first


def test_masks_drop_layers_independently_with_the_given_probability():
    masks = draw_layer_masks(4000, 3, 0.7, torch.Generator().manual_seed(0))
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


def test_states_are_compared_at_real_tokens_only():
    first, second = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    short = (first[0, :3] - second[0, :3]).square().mean()
    full = (first[1] - second[1]).square().mean()
    torch.testing.assert_close(states_distance(first, second, mask), (short + full) / 2)
