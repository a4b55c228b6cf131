"""`DivergenceCheck` looks at the gradient norm of each step."""

from __future__ import annotations

import logging
import math

from torch import nn

from sptune.errors import SptuneError

logger = logging.getLogger(__name__)


class DivergenceError(SptuneError):
    """Trained weights are not finite any more."""


class DivergenceCheck:
    """Warns of the first step whose gradient is not finite, and stops the training if its weights are not, either.

    Args:
        rates: the options of the learning rates, for messages.
    """

    def __init__(self, rates: str) -> None:
        self.rates = rates
        self._warned = False

    def __call__(self, model: nn.Module, step: int, grad_norm: float) -> None:
        """Check a step.

        Args:
            model: the trained model.
            step: number of the step.
            grad_norm: its gradient norm.

        Raises:
            DivergenceError: trained weights are not finite any more.
        """
        if math.isfinite(grad_norm):
            return
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        broken = [name for name, p in trained if not p.isfinite().all()]
        if broken:
            raise DivergenceError(
                f"Training diverged: the gradient norm of step {step} is {grad_norm}, and {len(broken)} tensors "
                f"are not finite any more ({broken[0]}, ...). Resume from an earlier checkpoint, lower {self.rates}, "
                "and check that the batch is finite."
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "The gradient norm of step %d is %s, so clipping has set the step's gradients to zero and the step "
                "had no effect. If this continues, lower %s, or compute in float32.",
                step,
                grad_norm,
                self.rates,
            )
