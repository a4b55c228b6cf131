"""The bilevel step of SPT-DARTS (method section 4).

omega are the weights, alpha the gate parameters. C is the consistency penalty of two runs under layer masks.

    L_weight(omega, alpha)       = task loss on the weight split       + lambda_c C
    L_architecture(omega, alpha) = task loss on the architecture split + lambda_c C

    g_omega = grad_omega L_weight
    g_alpha = grad_alpha L_architecture + lambda_m grad_alpha L_weight

One optimizer takes both steps at once. First-order DARTS has lambda_c = lambda_m = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Gradients = list[torch.Tensor | None]


class BilevelStep:
    """Gathers g_omega and g_alpha over the micro-batches of one optimizer step.

    Args:
        omega: the weights.
        alpha: the gate parameters.
        lambda_m: weight of grad_alpha L_weight.

    Attributes:
        alpha_weight: grad_alpha L_weight so far, one for each alpha.
        alpha_architecture: grad_alpha L_architecture so far.
    """

    def __init__(self, omega: list[nn.Parameter], alpha: list[nn.Parameter], lambda_m: float) -> None:
        self.omega, self.alpha, self.lambda_m = omega, alpha, lambda_m
        self.begin()

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.alpha_weight: Gradients = [None] * len(self.alpha)
        self.alpha_architecture: Gradients = [None] * len(self.alpha)

    def backward_weight(self, backward: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A micro-batch of a step in which alpha does not move.

        Args:
            backward: the backward pass of L_weight.
        """
        loss = backward()
        _take_gradients(self.alpha)
        return loss

    def backward_both(
        self, backward_architecture: Callable[[], None], backward_weight: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """A micro-batch of each split; gives the loss of the weight split's.

        Args:
            backward_architecture: adds grad_alpha L_architecture to the gradients of alpha.
            backward_weight: the backward pass of L_weight.
        """
        omega_weight = _take_gradients(self.omega)  # of the micro-batches before
        _put_gradients(self.alpha, self.alpha_architecture)
        backward_architecture()
        self.alpha_architecture = _take_gradients(self.alpha)

        _put_gradients(self.omega, omega_weight)  # which drops grad_omega L_architecture
        _put_gradients(self.alpha, self.alpha_weight)
        loss = backward_weight()
        self.alpha_weight = _take_gradients(self.alpha)
        return loss

    def put_alpha_gradients(self) -> None:
        """Give each alpha its g_alpha, after the last micro-batch."""
        parts = zip(self.alpha, self.alpha_architecture, self.alpha_weight, strict=True)
        for alpha, architecture, weight in parts:
            alpha.grad = mixed_level_gradient(architecture, weight, self.lambda_m)


def mixed_level_gradient(
    architecture: torch.Tensor | None, weight: torch.Tensor | None, lambda_m: float
) -> torch.Tensor | None:
    """g_alpha = grad_alpha L_architecture + lambda_m grad_alpha L_weight; None stands for no gradient at all."""
    if weight is None or lambda_m == 0:
        return architecture
    weighted = lambda_m * weight
    return weighted if architecture is None else architecture + weighted


def _take_gradients(parameters: list[nn.Parameter]) -> Gradients:
    """The gradients, which the parameters lose."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def _put_gradients(parameters: list[nn.Parameter], gradients: Gradients) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
