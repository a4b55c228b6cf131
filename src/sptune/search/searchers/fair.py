"""Fair one-shot training, as in FairNAS (Chu, Zhang and Xu, 2021); held-out losses select the layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from sptune.search.problem import Findings, SearchProblem
from sptune.search.supernet_trainer import SupernetTrainer, check_discrete
from sptune.training.loss_items import batch_size

Batch = dict[str, Any]


class FairTrainer(SupernetTrainer):
    """Trains all discrete networks at once; they share a generator for each layer and one head.

    Every example of a batch runs through its own discrete network. A fair coin decides for each layer whether it has a
    prompt; the next example has prompts at the other layers. So no layer is trained more often than another, and none
    relies on another. No gates are learned: an example's gates are 1 at its layers and 0 elsewhere, which is exactly
    the discrete network (method section 3).
    """

    searchers = ("fair", "auto")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_discrete(self)
        self._step_loss = torch.zeros((), device=self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of the weight split, from the beginning of a training on."""
        self._step_loss.zero_()
        return super().get_train_dataloader()

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One pass over the batch; the step's loss is recorded in the history."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss += loss.to(self._step_loss)
        if self.accelerator.sync_gradients:
            self.history.latest = {"loss": self.accelerator.reduce(self._step_loss, "mean").item()}
            self._step_loss.zero_()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """In training, the loss with each example in its own discrete network."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        sets = self.draw_rows(self.draw_sets, batch_size(inputs))
        with self.tuner.gating(sets.to(self.args.device)):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def draw_sets(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """(size, candidates): a row for each example, 1 at the layers of its set and 0 elsewhere."""
        coins = torch.randint(2, (math.ceil(size / 2), len(self.tuner.generator_layers)), generator=generator)
        return torch.stack([coins, 1 - coins], dim=1).flatten(0, 1)[:size].float()


def find_layers(problem: SearchProblem) -> Findings:
    """Train all sets of layers in one network, and choose the one with the lowest held-out loss of the wanted size."""
    return problem.train_supernet(FairTrainer)
