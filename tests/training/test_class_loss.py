"""Class weights and the focal loss, against their formulas."""

import math

import pytest
import torch
from torch.nn import functional

from sptune.training.class_loss import ClassLoss, balanced_weights


def draw(classes=3, size=6):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(size, classes, generator=generator)
    return scores.requires_grad_(), torch.randint(classes, (size,), generator=generator)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([30, 10], [40 / (2 * 30), 40 / (2 * 10)]),
        ([1, 2, 5], [8 / 3, 8 / 6, 8 / 15]),
        ([7, 7], [1.0, 1.0]),
        ([6, 0, 2], [8 / 12, 1.0, 8 / 4]),
    ],
)
def test_balanced_weights_are_those_of_scikit_learn(counts, expected):
    assert balanced_weights(counts) == pytest.approx(expected)
    mean = sum(count * weight for count, weight in zip(counts, balanced_weights(counts), strict=True)) / sum(counts)
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 4.0)])
def test_the_loss_of_an_example_is_that_of_the_paper(gamma, weights):
    scores, labels = draw()
    losses = ClassLoss(weights, gamma)(scores, labels)
    for row, label, loss in zip(scores.tolist(), labels.tolist(), losses.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        weight = 1.0 if weights is None else weights[label]
        assert loss == pytest.approx(-weight * (1 - p) ** gamma * math.log(p), rel=1e-4, abs=1e-7)


def test_gradients_are_those_of_the_formula():
    scores, labels = draw()
    scores = scores.detach().double().requires_grad_()
    loss = ClassLoss((0.5, 1.0, 4.0), 2.0)
    assert torch.autograd.gradcheck(lambda one: loss(one, labels), (scores,))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("right", [True, False])
def test_scores_of_no_doubt_have_finite_gradients(gamma, right):
    scores = torch.tensor([[100.0, -100.0]], requires_grad=True)
    losses = ClassLoss(None, gamma)(scores, torch.tensor([0 if right else 1]))
    losses.sum().backward()
    assert losses.item() == pytest.approx(0.0 if right else 200.0)
    assert scores.grad.isfinite().all()


def test_without_weights_and_gamma_it_is_the_cross_entropy():
    scores, labels = draw()
    labels[0] = -100
    assert torch.equal(ClassLoss()(scores, labels), functional.cross_entropy(scores, labels, reduction="none"))
    assert ClassLoss((1.0, 2.0, 3.0), 2.0)(scores, labels)[0] == 0
