"""`SPTSearchTrainer` trains generators, head and gates of a supernet together (method section 4)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from sptune.errors import InputError
from sptune.modeling.gates import at_least_float32
from sptune.modeling.problem_types import SINGLE_LABEL
from sptune.renamed import warn_renamed
from sptune.search.bilevel import BilevelStep
from sptune.search.consistency import draw_layer_masks, predictions_distance, states_distance
from sptune.search.gate_sampler import GateSampler
from sptune.search.supernet_trainer import SupernetTrainer, check_batches, logits_of
from sptune.training.loss_items import batch_size

Batch = dict[str, Any]

GATE_BETAS = (0.5, 0.999)
# Names of the losses on both splits in the history.
LOSS_NAMES = {"weight": "weight_loss", "architecture": "gate_loss"}
NO_LOSSES: dict[str, float | None] = {"weight_loss": None, "gate_loss": None, "consistency": None}


class SPTSearchTrainer(SupernetTrainer):
    """Trains generators, head and gates of a supernet together, by first-order DARTS or by SPT-DARTS.

    The training data is split in a weight split and an architecture split. Each step is a `BilevelStep` over
    micro-batches of both. In the first `warmup_ratio` of the steps, and in those between every `gate_interval` steps,
    there is no batch of the architecture split and no alpha moves.

    In SPT-DARTS each example occurs twice in its batch, under independent layer masks, and a consistency penalty is
    added to both losses.

    Args:
        *args: the arguments of `SupernetTrainer`; with the searcher "spt_darts" training is SPT-DARTS, with all others
            first-order DARTS.
        gate_sampler: the gates of a batch; those of DARTS by default.
        **kwargs: likewise.
    """

    gated = True

    def __init__(self, *args: Any, gate_sampler: type[GateSampler] = GateSampler, **kwargs: Any) -> None:
        self.searchers = gate_sampler.searchers
        super().__init__(*args, **kwargs)
        self.gate_sampler = gate_sampler(self)
        model = cast(nn.Module, self.model)
        alphas = self.tuner.gate_parameters()
        self.alpha_parameters: list[nn.Parameter] = [alphas[layer] for layer in sorted(alphas)]
        is_alpha = {id(alpha) for alpha in self.alpha_parameters}
        weights = [p for p in model.parameters() if p.requires_grad and id(p) not in is_alpha]
        self._masked = self.search.searcher == "spt_darts"
        self.bilevel_step = BilevelStep(
            weights, self.alpha_parameters, self.search.mixed_level_weight if self._masked else 0.0
        )
        self._architecture_iterator: Iterator[Batch] | None = None
        self._architecture_batches: deque[Batch] = deque()
        self._architecture_items: torch.Tensor | None = None
        # Micro-batches in the current step: the last step of an epoch may have fewer.
        self.micro_batches = 1
        self._begin_anew()

    @property
    def gate_dataset(self) -> Any:
        """Old name of `architecture_dataset`."""
        warn_renamed("gate_dataset", "architecture_dataset")
        return self.architecture_dataset

    def estimate_seconds(self) -> float:
        """The seconds that the training will take, from two timed passes without a trace; called before `train`."""
        seconds = super().estimate_seconds()
        self._begin_anew()
        return seconds

    def passes(self, steps: int) -> float:
        """One pass for each step, and those of the architecture step where the gates move."""
        moving = math.ceil((steps - self.warmup_steps(steps)) / self.search.gate_interval)
        return steps + self.gate_sampler.architecture_passes * moving

    # The step

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The backward passes of one micro-batch of each split."""

        def backward_weight() -> torch.Tensor:
            return self.backward("weight", model, inputs, num_items_in_batch)

        def backward_architecture() -> None:
            batch = self._architecture_batches.popleft()
            self.gate_sampler.backward_architecture(model, batch, self._architecture_items)

        if self._gates_move():
            loss = self.bilevel_step.backward_both(backward_architecture, backward_weight)
        else:
            loss = self.bilevel_step.backward_weight(backward_weight)
        if self.accelerator.sync_gradients:
            self._finish_step()
        return loss

    def backward(
        self, split: str, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """The backward pass of a micro-batch of one split ("weight" or "architecture"); returns its loss."""
        self._split = split
        return super().training_step(model, inputs, num_items_in_batch)

    def _finish_step(self) -> None:
        """Put g_alpha in place and record the losses, after the last micro-batch of the step."""
        if self._gates_move():
            self.bilevel_step.put_alpha_gradients()
        names = list(self._losses)
        losses = self.accelerator.reduce(torch.stack([self._losses[name] for name in names]), "mean").tolist()
        self.history.latest = {**NO_LOSSES, **dict(zip(names, losses, strict=True))}
        self._begin_step()

    def _begin_step(self) -> None:
        self.bilevel_step.begin()
        self._losses: dict[str, torch.Tensor] = {}

    def _gates_move(self) -> bool:
        """Whether the gates move in this step: after the warm-up they do every `gate_interval` steps."""
        beyond = self.state.global_step - self.warmup_steps(self.state.max_steps)
        return beyond >= 0 and beyond % self.search.gate_interval == 0

    def warmup_steps(self, steps: int) -> int:
        """The number of steps, out of this many, before the gates move."""
        return min(round(self.search.warmup_ratio * steps), steps - 1)

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """In training, the loss of the search; in evaluation, the loss of the gated network."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        consistency, gates = None, self.gate_sampler.sample(batch_size(inputs))
        if self._masked:
            loss, consistency, outputs = self._masked_loss(model, inputs)
        elif gates is None:
            loss, outputs = self._mean_loss(model, inputs)
        else:
            with self.tuner.gating(gates):
                loss, outputs = self._mean_loss(model, inputs)
        share = self._share(inputs, num_items_in_batch)
        self.record(LOSS_NAMES[self._split], loss * share)
        if consistency is not None:
            if self._split == "weight":
                self.record("consistency", consistency * share)
            loss = loss + self.search.consistency_weight * consistency
        loss = (loss + self.gate_sampler.penalty()) * share
        return (loss, outputs) if return_outputs else loss

    def gates(self) -> list[float]:
        """The gate of each candidate layer, as training has left it."""
        return self.gate_sampler.trained().tolist()

    @property
    def alphas(self) -> torch.Tensor:
        """The gate parameters, (candidates,), with their gradients."""
        return torch.cat([alpha.to(self.alpha_parameters[0].device) for alpha in self.alpha_parameters])

    def _masked_loss(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Mean task loss over both runs of each example, their consistency C, and the outputs of the batch of 2B."""
        size = batch_size(inputs)
        twice = self.at_labels(model, repeat_batch(inputs))
        masks = self._draw_masks(size).to(self.alpha_parameters[0].device)
        with self.tuner.gating(torch.sigmoid(at_least_float32(self.alphas)) * masks):
            if self.search.consistency == "mse":
                with self.tuner.record_final_states() as states:
                    loss, outputs = self._mean_loss(model, twice)
                first, second = states[-1].chunk(2)
                given = inputs.get("attention_mask")  # of multiple choice (B, choices, T), and each choice is a row
                return loss, states_distance(first, second, None if given is None else given.flatten(0, -2)), outputs
            loss, outputs = self._mean_loss(model, twice)
        if isinstance(outputs, dict) and "logits" not in outputs:
            raise InputError(
                f"consistency='kl' compares class scores, but the model gives only {', '.join(outputs)}; choose 'mse'."
            )
        scores = logits_of(outputs)
        problem_type = self.scores_type(scores)
        if scores.shape[-1] < 2 and problem_type == SINGLE_LABEL:
            raise InputError("consistency='kl' compares class scores, but the model gives one number; choose 'mse'.")
        first, second = scores[:size], scores[size:]
        labels = twice.get("labels")
        if scores.dim() > 2 and isinstance(labels, torch.Tensor):
            predicted = self.items.positions(labels[:size])
            first, second = (run[:, : predicted.shape[1]][predicted] for run in (first, second))
            if not predicted.any():
                return loss, loss.new_zeros(()), outputs
        return loss, predictions_distance(problem_type, first, second), outputs

    def _draw_masks(self, size: int) -> torch.Tensor:
        """Layer masks (2 size, candidates) for both runs of `size` examples."""
        draw = partial(draw_layer_masks, len(self.alpha_parameters), self.search.mask_probability)
        return self.draw_rows(draw, size).flatten(0, 1)

    # Optimizer

    def _group_options(self, model: nn.Module) -> list[tuple[set[int], dict[str, Any]]]:
        gates = {id(alpha) for alpha in self.alpha_parameters}
        options = {"lr": self.search.gate_learning_rate, "betas": GATE_BETAS, "weight_decay": 0.0, "gates": True}
        return [*super()._group_options(model), (gates, options)]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of `args` for the weights, and a constant learning rate for the gates."""
        created = self.lr_scheduler is None
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if created and isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            for index, group in enumerate(scheduler.optimizer.param_groups):
                if group.get("gates"):
                    scheduler.lr_lambdas[index] = _constant
                    group["lr"] = group["initial_lr"]
        return scheduler

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """The batches of the weight split; those of the architecture split are prepared beside them."""
        self._begin_anew()
        self._architecture_dataloader = self._get_dataloader(
            dataset=self.architecture_dataset,
            description="Architecture",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        batches = len(self._architecture_dataloader)
        check_batches(batches, self._train_batch_size, "architecture split", "raise gate_fraction")
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """A step's micro-batches of the weight split; as many of the architecture split are kept for it."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.micro_batches = max(len(samples), 1)
        if self._gates_move():
            if self._architecture_iterator is None:
                self._architecture_iterator = self._iterate_architecture_batches(self.history.gate_batches)
            with torch.random.fork_rng(devices=[]):  # starting a data loader draws from the global random state
                self._architecture_batches = deque(islice(self._architecture_iterator, len(samples)))
            self.history.gate_batches += len(samples)
            self._architecture_items = self._get_num_items_in_batch(list(self._architecture_batches), device)
        return samples, items

    def _iterate_architecture_batches(self, drawn: int) -> Iterator[Batch]:
        """The batches of the architecture split, epoch after epoch, without the first `drawn` ones."""
        loader = self._architecture_dataloader
        while True:
            epoch, skip = divmod(drawn, len(loader))
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            for batch in islice(loader, skip, None):
                drawn += 1
                yield batch

    def _begin_anew(self) -> None:
        self._architecture_iterator = None
        self._architecture_batches = deque()
        self._architecture_items = None
        self._split = "weight"
        self._begin_step()

    def record(self, name: str, value: torch.Tensor) -> None:
        """Add a micro-batch's part to a loss of the step."""
        self._losses[name] = self._losses.get(name, 0) + value.detach()


def _constant(step: int) -> float:
    return 1.0


def repeat_batch(inputs: Batch) -> Batch:
    """The batch of 2B that holds each example twice: examples 0 ... B-1, then again 0 ... B-1."""
    size = batch_size(inputs)
    return {
        name: torch.cat([value, value])
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for name, value in inputs.items()
    }
