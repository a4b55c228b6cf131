"""Fair one-shot training (as in FairNAS; Chu, Zhang and Xu, 2021), read by the held-out loss of discrete networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from sptune.search.problem import Findings, SearchProblem
from sptune.search.trainer import SearchTrainer

SELECTIONS = ("greedy", "perturbation")
Batch = dict[str, Any]


class FairTrainer(SearchTrainer):
    """One network with a generator a layer and one head; each step trains every layer alone, on the same batch.

    Strict fairness: no layer is trained more than another, and none relies on another. There are no gates.
    """

    searchers = ("fair",)
    records_gates = False

    def __init__(self, model: nn.Module, args: TrainingArguments, **kwargs: Any) -> None:
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # the other layers' generators, in each of a step's passes
        super().__init__(model, args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One pass for each layer; the step's loss is their mean."""
        losses = []
        for layer in self.tuner.candidate_layers:
            with self.tuner.prompting_at([layer]):
                losses.append(super().training_step(model, inputs, num_items_in_batch))
        self.history.latest = {"losses": (torch.stack(losses) * len(losses)).tolist()}
        return torch.stack(losses).sum()

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, *args: Any) -> Any:
        """In training, the loss of one layer's pass by the number of layers."""
        loss, outputs = super().compute_loss(model, inputs, True, *args)
        if model.training:
            loss = loss / len(self.tuner.candidate_layers)
        return (loss, outputs) if return_outputs else loss

    def timed_pass(self, model: nn.Module, inputs: Batch) -> None:
        """The passes of a step."""
        for layer in self.tuner.candidate_layers:
            with self.tuner.prompting_at([layer]):
                super().timed_pass(model, inputs)

    def passes(self, steps: int) -> float:
        """One for each step."""
        return steps


def search(problem: SearchProblem) -> Findings:
    """Train all layers alone in one network."""
    return problem.train(FairTrainer)
