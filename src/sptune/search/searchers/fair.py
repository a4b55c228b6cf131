"""Fair one-shot training (as in FairNAS; Chu, Zhang and Xu, 2021), read by the held-out loss of discrete networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from sptune.search.problem import Findings, SearchProblem
from sptune.search.trainer import SearchTrainer

SELECTIONS = ("sets", "greedy", "perturbation")
# So many discrete networks are trained in a step, one after the other on the same batch.
NETWORKS_A_STEP = 3

Batch = dict[str, Any]


class FairTrainer(SearchTrainer):
    """One network with a generator a layer and one head, trained as many discrete networks that share their weights.

    The candidates, in random order, are cut into sets of as many layers as are wanted; when every set has had its turn,
    they are shuffled anew. So no layer is trained more than another, none comes to rely on all the others, and the
    networks that are trained are of the kind that is to be chosen. There are no gates.
    """

    searchers = ("fair",)
    gated = False

    def __init__(self, model: nn.Module, args: TrainingArguments, **kwargs: Any) -> None:
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # a pass uses the generators of one set
        # A cache holds the states at one layer, and the sets begin at many; they share those of a batch instead.
        super().__init__(model, args, **{**kwargs, "prefix_cache": None})
        self._losses = torch.zeros(len(self.tuner.candidate_layers), device=self.args.device)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A pass for each of the step's sets; the loss is their mean."""
        total = torch.zeros((), device=self.args.device)
        sets = self.sets_of(self.state.global_step)
        with self.sharing_prefix() as shared:
            for layers in sorted(sets, reverse=True):
                with self.tuner.prompting_at(layers), shared():
                    loss = super().training_step(model, inputs, num_items_in_batch)
                total += loss.to(total)
                for layer in layers:
                    self._losses[self.tuner.candidate_layers.index(layer)] += NETWORKS_A_STEP * loss.to(total)
        if self.accelerator.sync_gradients:
            self._record(sets)
        return total

    def _record(self, sets: list[list[int]]) -> None:
        """Put the mean loss of each layer's passes in this step into the history."""
        passes = [sum(layer in layers for layers in sets) for layer in self.tuner.candidate_layers]
        losses = self.accelerator.reduce(self._losses, "mean").tolist()
        means = [loss / count if count else None for loss, count in zip(losses, passes, strict=True)]
        self.history.latest = {"losses": means}
        self._losses.zero_()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """In training, a set's part of the step's loss."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            loss = loss / NETWORKS_A_STEP
        return (loss, outputs) if return_outputs else loss

    def sets_of(self, step: int) -> list[list[int]]:
        """The sets that a step trains; they follow from the seed and the step."""
        first = step * NETWORKS_A_STEP
        return [self._set(number) for number in range(first, first + NETWORKS_A_STEP)]

    def _set(self, number: int) -> list[int]:
        candidates, size = self.tuner.candidate_layers, self.search.num_prompt_layers or 1
        shuffle, place = divmod(number, math.ceil(len(candidates) / size))
        generator = torch.Generator().manual_seed((self.search.seed + 1) * 1_000_003 + shuffle)
        order = torch.randperm(len(candidates), generator=generator).tolist()
        return sorted(candidates[index] for index in order[place * size : (place + 1) * size])

    def timed_pass(self, model: nn.Module, inputs: Batch) -> None:
        """The passes of a step."""
        with self.sharing_prefix() as shared:
            for layers in sorted(self.sets_of(0), reverse=True):
                with self.tuner.prompting_at(layers), shared():
                    super().timed_pass(model, inputs)


def search(problem: SearchProblem) -> Findings:
    """Train sets of layers in one network, and choose the set with the lowest held-out loss."""
    return problem.train(FairTrainer)
