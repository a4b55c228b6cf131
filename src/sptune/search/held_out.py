"""`HeldOutLosses` measures variants of a supernet on the architecture split."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.utils.data import Subset

from sptune.errors import InputError, SptuneError
from sptune.training.caching.exactness_probe import probe_reading
from sptune.training.caching.state_reader import StateReader
from sptune.training.caching.state_sources import BatchStates
from sptune.training.compilation import compiles

if TYPE_CHECKING:
    from sptune.search.supernet_trainer import SupernetTrainer

Batch = dict[str, Any]
# A context, such as that of `SPTModel.prompting_at`, in which forwards are those of a variant of the network.
Variant = Callable[[], AbstractContextManager[None]]


class HeldOutLosses:
    """The part of a search's trainer that gives held-out losses to the selection criteria.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: SupernetTrainer) -> None:
        self.trainer = trainer
        # For each layer, whether states that are read there are exact.
        self._exact: dict[int, bool] = {}

    def losses(self, variants: Sequence[Variant], part: int = 0, parts: int = 1) -> list[float]:
        """Mean loss of each of several variants of the network on the architecture split, or on a part of it.

        Args:
            variants: contexts for the forwards.
            part: index of the part.
            parts: number of parts, of nearly equal size.

        Raises:
            InputError: no example has a label.
            SptuneError: a loss is not finite.
        """
        trainer = self.trainer
        model = cast(nn.Module, trainer.model)
        was_training = model.training
        model.eval()
        sums = torch.zeros(len(variants), device=trainer.args.device)
        items = torch.zeros((), device=trainer.args.device)
        # The one with the highest lowest prompt layer comes first: its forward runs the layers below all others.
        order = sorted(range(len(variants)), key=lambda place: self._first_layer(variants[place]), reverse=True)
        for batch in self._batches(_sorted_part(trainer.architecture_dataset, part, parts)):
            inputs = cast(Batch, trainer._prepare_inputs(batch))
            count = trainer.items.count(inputs).to(items)
            items += count
            with self._sharing_states(inputs) as shared:
                for place in order:
                    with variants[place](), shared():
                        sums[place] += count * self._loss(model, inputs).to(sums)
        model.train(was_training)
        gathered = trainer.accelerator.reduce(torch.cat([sums, items[None]]), "sum")
        if gathered[-1] == 0:
            raise InputError(
                "The held-out examples that the search compares layers by have no labels (all are -100). Check that "
                "texts are not cut before their labels, give more examples, or raise gate_fraction."
            )
        losses: list[float] = (gathered[:-1] / gathered[-1]).tolist()
        check_finite(losses)
        return losses

    def _loss(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """The mean loss of a batch, without the other processes, whose numbers of batches may differ."""
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            return self.trainer._mean_loss(model, inputs)[0]

    def _batches(self, dataset: Any) -> Iterator[Batch]:
        """This process's batches, possibly none: every example is in exactly one process's."""
        trainer = self.trainer
        even, trainer.accelerator.even_batches = trainer.accelerator.even_batches, False
        drop_last = trainer.args.dataloader_drop_last
        try:
            trainer.args.dataloader_drop_last = False
            loader = trainer.get_eval_dataloader(dataset)
            trainer.args.dataloader_drop_last = drop_last
            yield from loader
        finally:
            trainer.accelerator.even_batches = even
            trainer.args.dataloader_drop_last = drop_last

    @contextlib.contextmanager
    def _sharing_states(self, inputs: Batch) -> Iterator[Variant]:
        """In the forwards over one batch inside, compute the layers below the prompts only once where that is exact.

        Yields:
            A function that makes the context of one forward.
        """
        tuner = self.trainer.tuner
        backbone = tuner.backbone
        frozen = not any(
            parameter.requires_grad
            for name, parameter in backbone.base_model.named_parameters()
            if tuner.prefix not in name
        )
        if not frozen or compiles(self.trainer):
            yield contextlib.nullcontext
            return
        states, reader = BatchStates(backbone.layers), StateReader(backbone.base_model, backbone.layers)

        def shared() -> AbstractContextManager[None]:
            states.layer = tuner.generator_layers[0]
            if states.layer == 0:
                return contextlib.nullcontext()
            if states.layer not in self._exact:
                self._exact[states.layer] = self._is_exact(reader, states.layer, inputs)
            return reader.reading(states) if self._exact[states.layer] else contextlib.nullcontext()

        try:
            with states.noting():
                yield shared
        finally:
            reader.remove()

    def _is_exact(self, reader: StateReader, layer: int, inputs: Batch) -> bool:
        """Whether forwards that read the states at a layer give the results of those that compute them."""
        model = cast(nn.Module, self.trainer.model)
        blocks = self.trainer.tuner.backbone.layers
        reason, _ = probe_reading(reader, layer, model, blocks, lambda: self._loss(model, inputs))
        return reason is None

    def _first_layer(self, variant: Variant) -> int:
        with variant():
            return self.trainer.tuner.generator_layers[0]


def _sorted_part(dataset: Any, part: int, parts: int) -> Any:
    """A part of the examples, sorted by length where it is known, so that there is little padding."""
    order = list(range(part, len(dataset), parts))
    if "input_ids" in dataset[order[0]]:
        lengths = {index: len(dataset[index]["input_ids"]) for index in order}
        order.sort(key=lambda index: lengths[index])
    return dataset.select(order) if hasattr(dataset, "select") else Subset(dataset, order)


def check_finite(values: Sequence[float]) -> None:
    """Refuse to continue a search that diverged.

    Raises:
        SptuneError: a value is not finite.
    """
    if not all(math.isfinite(value) for value in values):
        raise SptuneError(
            "The search diverged: its losses or gates are not finite any more. Lower learning_rate, head_learning_rate "
            "or gate_learning_rate."
        )
