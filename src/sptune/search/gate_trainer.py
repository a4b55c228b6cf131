"""`SPTSearchTrainer` trains generators, head and gates of a search network together (method section 4)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from sptune.errors import InputError
from sptune.modeling.gates import at_least_float32
from sptune.search.bilevel import draw_layer_masks, mixed_level_gradient, states_distance, symmetric_kl
from sptune.search.supernet_trainer import SearchTrainer
from sptune.training.trainer import batch_size

Batch = dict[str, Any]

GATE_BETAS = (0.5, 0.999)
NO_LOSSES: dict[str, float | None] = {"weight_loss": None, "gate_loss": None, "consistency": None}


class SPTSearchTrainer(SearchTrainer):
    """Trains generators, head and gates of a search network together, by first-order DARTS or by SPT-DARTS.

    The training data is split in a weight half and a gate half. Every step, for each micro-batch of the weight half and
    one of the gate half: backward on the gate batch, set the alpha gradients aside, restore the weight gradients
    gathered so far, backward on the weight batch. Before the optimiser steps, each alpha gets
    g_alpha = grad L_gate + lambda_m grad L_weight in place (DARTS: lambda_m = 0). In the first `warmup_ratio` of the
    steps, and between those that `gate_interval` says, there is no gate batch and no alpha moves.

    In SPT-DARTS each example stands twice in its batch, under independent layer masks, and a consistency penalty joins
    both losses. Other searchers say in `sample_gates` which gates a batch goes through, and in `gate_penalty` what is
    added to its loss.

    Args:
        *args: what `SearchTrainer` takes; "spt_darts" is what its name says, any other searcher goes by first-order
            DARTS.
        **kwargs: likewise.
    """

    searchers: tuple[str, ...] = ("darts", "spt_darts")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model = cast(nn.Module, self.model)
        alphas = self.tuner.gate_parameters()
        self._alphas: list[nn.Parameter] = [alphas[layer] for layer in sorted(alphas)]
        is_alpha = {id(alpha) for alpha in self._alphas}
        self._weights = [
            parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in is_alpha
        ]
        self._masked = self.search.searcher == "spt_darts"
        self._mixed_level_weight = self.search.mixed_level_weight if self._masked else 0.0
        self._gate_iterator: Iterator[Batch] | None = None
        self._gate_batches: deque[Batch] = deque()
        self._gate_items: torch.Tensor | None = None
        self._begin_anew()

    def estimate_seconds(self) -> float:
        """What the training will take, from a few timed passes that leave no trace; to be called before `train`."""
        seconds = super().estimate_seconds()
        self._begin_anew()
        return seconds

    def passes(self, steps: int) -> float:
        """A pass for every step, and one more where the gates move."""
        return steps + math.ceil((steps - self._warmup_steps(steps)) / self.search.gate_interval)

    # The step

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Both backward passes of one micro-batch; see the class for their order."""
        if not self._gates_move():
            loss = self._backward("weight", model, inputs, num_items_in_batch)
            for alpha in self._alphas:
                alpha.grad = None
        else:
            gathered = _take_gradients(self._weights)
            _put_gradients(self._alphas, self._alpha_gradients["gate"])
            self._backward("gate", model, self._gate_batches.popleft(), self._gate_items)
            self._alpha_gradients["gate"] = _take_gradients(self._alphas)

            _put_gradients(self._weights, gathered)
            _put_gradients(self._alphas, self._alpha_gradients["weight"])
            loss = self._backward("weight", model, inputs, num_items_in_batch)
            self._alpha_gradients["weight"] = _take_gradients(self._alphas)
        if self.accelerator.sync_gradients:
            self._finish_step()
        return loss

    def _backward(
        self, half: str, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        self._half = half
        return super().training_step(model, inputs, num_items_in_batch)

    def _finish_step(self) -> None:
        """Put g_alpha in place and record the losses, now that every micro-batch of the step has been through."""
        if self._gates_move():
            for alpha, gate_part, weight_part in zip(
                self._alphas, self._alpha_gradients["gate"], self._alpha_gradients["weight"], strict=True
            ):
                alpha.grad = mixed_level_gradient(gate_part, weight_part, self._mixed_level_weight)
        names = list(self._losses)
        losses = self.accelerator.reduce(torch.stack([self._losses[name] for name in names]), "mean").tolist()
        self.history.latest = {**NO_LOSSES, **dict(zip(names, losses, strict=True))}
        self._begin_step()

    def _begin_step(self) -> None:
        self._alpha_gradients: dict[str, list[torch.Tensor | None]] = {
            half: [None] * len(self._alphas) for half in ("gate", "weight")
        }
        self._losses: dict[str, torch.Tensor] = {}

    def _gates_move(self) -> bool:
        """Whether this step moves the gates: after the warm-up, every `gate_interval`-th does."""
        beyond = self.state.global_step - self._warmup_steps(self.state.max_steps)
        return beyond >= 0 and beyond % self.search.gate_interval == 0

    def _warmup_steps(self, steps: int) -> int:
        return min(round(self.search.warmup_ratio * steps), steps - 1)

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """In training, the loss of the search; in evaluation, that of the gated network as it is."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        consistency, gates = None, self.sample_gates(batch_size(inputs))
        if self._masked:
            loss, consistency, outputs = self._masked_loss(model, inputs)
        elif gates is None:
            loss, outputs = self._mean_loss(model, inputs)
        else:
            with self.tuner.gating(gates):
                loss, outputs = self._mean_loss(model, inputs)
        share = self._share(inputs, num_items_in_batch)
        self._record(f"{self._half}_loss", loss * share)
        if consistency is not None:
            if self._half == "weight":
                self._record("consistency", consistency * share)
            loss = loss + self.search.consistency_weight * consistency
        loss = (loss + self.gate_penalty()) * share
        return (loss, outputs) if return_outputs else loss

    def sample_gates(self, size: int) -> torch.Tensor | None:
        """The gates, (size or 1, candidates), that a training batch of `size` goes through; None for sigmoid(alpha)."""
        return None

    def gate_penalty(self) -> torch.Tensor | float:
        """What is added to the loss of a training batch."""
        return 0.0

    @property
    def alphas(self) -> torch.Tensor:
        """The gate parameters, (candidates,), with their gradients."""
        return torch.cat([alpha.to(self._alphas[0].device) for alpha in self._alphas])

    def _masked_loss(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Mean task loss over both runs of each example, their consistency C, and the outputs of the batch of 2B."""
        size = batch_size(inputs)
        twice = repeat_batch(inputs)
        masks = self._draw_masks(2 * size).to(self._alphas[0].device)
        with self.tuner.gating(torch.sigmoid(at_least_float32(self.alphas)) * masks):
            if self.search.consistency == "mse":
                with self.tuner.record_final_states() as states:
                    loss, outputs = self._mean_loss(model, twice)
                final = states[-1]
                return loss, states_distance(final[:size], final[size:], inputs.get("attention_mask")), outputs
            loss, outputs = self._mean_loss(model, twice)
        scores = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
        if scores.shape[-1] < 2:
            raise InputError("consistency='kl' compares class scores, but the model gives one number; choose 'mse'.")
        first, second = scores[:size], scores[size:]
        labels = inputs.get("labels")
        if scores.dim() > 2 and isinstance(labels, torch.Tensor):
            predicted = self._label_positions(labels)
            first, second = (run[:, : predicted.shape[1]][predicted] for run in (first, second))
            if not predicted.any():
                return loss, loss.new_zeros(()), outputs
        return loss, symmetric_kl(first, second), outputs

    def _draw_masks(self, size: int) -> torch.Tensor:
        """Layer masks for `size` runs."""
        return draw_layer_masks(size, len(self._alphas), self.search.mask_probability, self.draw_generator())

    # Optimiser

    def _group_options(self, model: nn.Module) -> list[tuple[set[int], dict[str, Any]]]:
        gates = {id(alpha) for alpha in self._alphas}
        options = {"lr": self.search.gate_learning_rate, "betas": GATE_BETAS, "weight_decay": 0.0, "gates": True}
        return [*super()._group_options(model), (gates, options)]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule `args` names for the weights; the gates' learning rate stays what it is."""
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
        """The weight half's batches; the gate half's are made ready beside them."""
        self._begin_anew()
        self._gate_dataloader = self._get_dataloader(
            dataset=self.gate_dataset,
            description="Gate",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,  # type: ignore[arg-type]
            is_training=True,
        )
        if len(self._gate_dataloader) == 0:
            raise InputError(
                f"The gate half of the training data is less than one batch of {self._train_batch_size}; lower the "
                "batch size, raise gate_fraction, or set dataloader_drop_last=False."
            )
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """A step's micro-batches of the weight half; as many of the gate half are laid aside for it."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._gates_move():
            if self._gate_iterator is None:
                self._gate_iterator = self._iterate_gate_batches(self.history.gate_batches)
            with torch.random.fork_rng(devices=[]):  # starting a data loader draws from the global random state
                self._gate_batches = deque(islice(self._gate_iterator, len(samples)))
            self.history.gate_batches += len(samples)
            self._gate_items = self._get_num_items_in_batch(list(self._gate_batches), device)
        return samples, items

    def _iterate_gate_batches(self, drawn: int) -> Iterator[Batch]:
        """The gate half's batches, epoch after epoch, from the one after the first `drawn` on."""
        loader = self._gate_dataloader
        while True:
            epoch, skip = divmod(drawn, len(loader))
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            for batch in islice(loader, skip, None):
                drawn += 1
                yield batch

    def _begin_anew(self) -> None:
        self._gate_iterator = None
        self._gate_batches = deque()
        self._gate_items = None
        self._half = "weight"
        self._begin_step()

    def _record(self, name: str, value: torch.Tensor) -> None:
        """Add a micro-batch's part to a loss of the step."""
        self._losses[name] = self._losses.get(name, 0) + value.detach()


def _constant(step: int) -> float:
    return 1.0


def _take_gradients(parameters: list[nn.Parameter]) -> list[torch.Tensor | None]:
    """The gradients, which the parameters lose."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def _put_gradients(parameters: list[nn.Parameter], gradients: list[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def repeat_batch(inputs: Batch) -> Batch:
    """The batch of 2B that holds each example twice: examples 0 ... B-1, then again 0 ... B-1."""
    size = batch_size(inputs)
    return {
        name: torch.cat([value, value])
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for name, value in inputs.items()
    }
