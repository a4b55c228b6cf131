"""`SearchTrainer`: what all trainings of a search network have in common."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput

from sptune.errors import InputError, SptuneError
from sptune.modeling.gates import at_least_float32
from sptune.modeling.model import SPTModel
from sptune.search.data_split import split_dataset
from sptune.search.history import SearchHistory, check_search_checkpoint
from sptune.search.search_config import SearchConfig
from sptune.training.attention_kernel import fast_attention
from sptune.training.state_reader import StateReader
from sptune.training.state_sources import BatchStates
from sptune.training.trainer import SPTTrainer

Batch = dict[str, Any]
Setting = Callable[[], AbstractContextManager[None]]


class SearchTrainer(SPTTrainer):
    """Trains a search network on one half of the data and measures it on the other.

    Args:
        model: a search network, `get_peft_model(backbone, SPTConfig(prompt_layers="search"))`.
        args: training arguments; epochs count over the weight half.
        train_dataset: all the training data; `train_dataset` becomes the weight half, `gate_dataset` the gate half.
        search: how to search.
        **kwargs: what `SPTTrainer` takes.

    Raises:
        InputError: the model has no gates, the searcher is another's, the data cannot be split, or the run is
            distributed in a way that hides gradients (DeepSpeed, FSDP, DataParallel).
    """

    _rates = "learning_rate, head_learning_rate or gate_learning_rate"
    # What it trains for, and whether it trains gates.
    searchers: tuple[str, ...]
    gated = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: Dataset,
        search: SearchConfig,
        **kwargs: Any,
    ) -> None:
        tuner = getattr(model, "base_model", None)
        if not isinstance(tuner, SPTModel):
            raise InputError(
                f"{type(model).__name__} has no gates to learn; search with a network made by "
                "get_peft_model(backbone, SPTConfig(prompt_layers='search'))."
            )
        tuner.gate_parameters()
        if search.searcher not in self.searchers:
            raise InputError(
                f"searcher={search.searcher!r} is not what {type(self).__name__} trains for; it takes "
                f"{', '.join(self.searchers)}, and search_prompt_layers takes all."
            )
        self.search = search
        self.tuner = tuner
        weight_dataset, self.gate_dataset = split_dataset(train_dataset, search)
        super().__init__(model, args, train_dataset=weight_dataset, **kwargs)
        self.caching.datasets = (*self.caching.datasets, "gate_dataset")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            raise InputError(
                "The search needs every gradient in its place, which DeepSpeed, FSDP and torch's DataParallel "
                "do not give; start one process for each GPU with 'accelerate launch' and plain data parallelism, "
                "or let the search see one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if self.optimizer is not None:
            raise InputError(
                "The search makes its own optimizer, with rates of their own for gates and head, which one passed in "
                "optimizers= would not have; leave it out and choose TrainingArguments(optim=...)."
            )
        history = SearchHistory(gates=self.gated)
        history.read_gates = self.gates
        self.add_callback(history)
        self._draws = (-1, 0)
        # What the user should know of how the network was read.
        self.remarks: list[str] = []

    @property
    def history(self) -> SearchHistory:
        """What the search has recorded so far."""
        return SearchHistory.of(self)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `transformers.Trainer.train`.

        Raises:
            InputError: the checkpoint is not one of a search.
        """
        check_search_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self._draws = (-1, 0)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def estimate_seconds(self) -> float:
        """What the training will take, from a few timed passes that leave no trace; to be called before `train`."""
        model = cast(nn.Module, self.model)
        was_training, seconds = model.training, 0.0
        with torch.random.fork_rng():
            # Batches of texts of like length differ much in size, so one of middling size is timed.
            some = sorted(islice(self.get_train_dataloader(), 9), key=_batch_tokens)
            inputs = some[len(some) // 2]
            model.to(self.args.device).train()
            for _ in range(2):  # the first one warms up
                started = time.monotonic()
                with fast_attention(self.args, model, inputs):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, self._prepare_inputs(inputs))
                    loss.backward()
                loss.item()  # waits for an accelerator
                seconds = time.monotonic() - started
        model.zero_grad()
        model.train(was_training)
        steps = planned_steps(self.args, len(cast(Sized, self.train_dataset)))
        return seconds * self.args.gradient_accumulation_steps * self.passes(steps)

    def passes(self, steps: int) -> float:
        """How many passes of a batch, forwards and backwards, a training of so many steps takes."""
        return steps

    def draw_generator(self, *, shared: bool = False) -> torch.Generator:
        """What a batch's random layers are drawn from.

        It follows from the seed, the step, the draw within the step and, unless it is shared, the process: a resumed
        search draws what it would have drawn.
        """
        step, draw = self._draws
        draw = draw + 1 if step == self.state.global_step else 0
        self._draws = (self.state.global_step, draw)
        draw += self.state.global_step * 2 * self.args.gradient_accumulation_steps
        if not shared:
            draw = draw * max(self.args.world_size, 1) + self.args.process_index
        seed = (self.search.seed + 1) * 1_000_003 + draw
        return torch.Generator().manual_seed(seed)

    def gates(self) -> list[float] | None:
        """The gate of each candidate layer, as training has left it; None if it trains none."""
        return self.tuner.gate_values().tolist() if self.gated else None

    def held_out_losses(self, settings: Sequence[Setting], part: int = 0, parts: int = 1) -> list[float]:
        """Mean loss of the gate half, or of a part of it, under each of several settings of the network.

        Args:
            settings: each makes a context, such as that of `SPTModel.prompting_at`, for the forwards inside.
            part: which part of the gate half, from 0.
            parts: how many there are, of nearly equal size.

        Raises:
            SptuneError: a loss is no number.
        """
        model = cast(nn.Module, self.model)
        was_training = model.training
        model.eval()
        sums = torch.zeros(len(settings), device=self.args.device)
        items = torch.zeros((), device=self.args.device)
        order = sorted(range(len(settings)), key=lambda place: self._first_layer(settings[place]), reverse=True)
        for batch in self._own_batches(_sorted_part(self.gate_dataset, part, parts)):
            count = self._count_items(batch).to(items)
            items += count
            with self.sharing_prefix() as shared:
                for place in order:
                    with settings[place](), shared():
                        sums[place] += count * self._own_loss(model, batch).to(sums)
        model.train(was_training)
        gathered = self.accelerator.reduce(torch.cat([sums, items[None]]), "sum")
        losses: list[float] = (gathered[:-1] / gathered[-1]).tolist()
        check_finite(losses)
        return losses

    def row_losses(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """The loss of each row of a batch, (batch,); of a language model the mean over the row's labels.

        Raises:
            InputError: the rows' losses cannot be told apart, since the loss is another function's.
        """
        if self.compute_loss_func is not None:
            raise InputError(
                f"searcher={self.search.searcher!r} needs the loss of each example, which compute_loss_func does not "
                "give; leave it out, or choose another searcher."
            )
        labels = self._labels(inputs)
        if labels is None:
            raise InputError("The batch has no labels, which the search goes by.")
        if self.class_scores is not None:
            return F.cross_entropy(at_least_float32(self.class_scores(model, inputs)), labels, reduction="none")
        logits = at_least_float32(model(**inputs).logits)
        if labels.is_floating_point():  # numbers, or a probability for each class
            loss_of = F.mse_loss if logits.shape[-1] == 1 else F.binary_cross_entropy_with_logits
            return loss_of(logits.view_as(labels), labels, reduction="none").view(len(labels), -1).mean(1)
        if labels.dim() == 1:
            return F.cross_entropy(logits, labels, reduction="none")
        if self._labels_are_shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return losses.sum(1) / (labels != -100).sum(1).clamp_min(1)

    def _own_loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch, without a word to other processes, which may have another number of batches."""
        inputs = self._prepare_inputs(batch)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._mean_loss(model, cast(Batch, inputs))[0]

    def _own_batches(self, dataset: Any) -> Iterator[Batch]:
        """This process's batches, of which there may be none: every example is in exactly one process's."""
        even, self.accelerator.even_batches = self.accelerator.even_batches, False
        drop_last = self.args.dataloader_drop_last
        try:
            self.args.dataloader_drop_last = False
            loader = self.get_eval_dataloader(dataset)
            self.args.dataloader_drop_last = drop_last
            yield from loader
        finally:
            self.accelerator.even_batches = even
            self.args.dataloader_drop_last = drop_last

    @contextlib.contextmanager
    def sharing_prefix(self) -> Iterator[Setting]:
        """In the forwards over one batch inside, compute the layers below the prompts only once.

        Yields:
            What makes a context for a forward; the one whose prompts begin highest should come first.
        """
        frozen = not any(
            parameter.requires_grad
            for name, parameter in self.tuner.backbone.base_model.named_parameters()
            if self.tuner.prefix not in name
        )
        if not frozen or self.args.torch_compile:
            yield contextlib.nullcontext
            return
        backbone = self.tuner.backbone
        prefix, reader = BatchStates(backbone.layers), StateReader(backbone.base_model, backbone.layers)

        def shared() -> AbstractContextManager[None]:
            prefix.layer = self.tuner.candidate_layers[0]
            return reader.reading(prefix)

        try:
            with prefix.noting():
                yield shared
        finally:
            reader.remove()

    def _first_layer(self, setting: Setting) -> int:
        with setting():
            return self.tuner.candidate_layers[0]


def _sorted_part(dataset: Any, part: int, parts: int) -> Any:
    """A part of the examples, those of like length together where it can be told, so that little is padding."""
    order = list(range(part, len(dataset), parts))
    if "input_ids" in dataset[order[0]]:
        lengths = {index: len(dataset[index]["input_ids"]) for index in order}
        order.sort(key=lambda index: lengths[index])
    return dataset.select(order) if hasattr(dataset, "select") else Subset(dataset, order)


def planned_steps(args: TrainingArguments, examples: int) -> int:
    """How many optimiser steps training arguments come to on so many examples."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(examples / (args.train_batch_size * max(args.world_size, 1)))
    return max(1, math.ceil(args.num_train_epochs * batches / args.gradient_accumulation_steps))


def check_discrete(trainer: SearchTrainer) -> None:
    """Refuse prompts whose gates of 0 and 1 do not make a discrete network.

    Raises:
        InputError: `visibility="always"`.
    """
    config: Any = trainer.tuner.peft_config[trainer.tuner.active_adapters[0]]
    if config.visibility == "always":
        raise InputError(
            f"visibility='always' is a way for gates to act, and searcher={trainer.search.searcher!r} has none; leave "
            "it out, or search with spt_darts."
        )


def check_finite(values: Sequence[float]) -> None:
    """Refuse to go on with a search that diverged.

    Raises:
        SptuneError: a value is no number.
    """
    if not all(math.isfinite(value) for value in values):
        raise SptuneError(
            "The search diverged: its losses or gates are no longer numbers. Lower learning_rate, head_learning_rate "
            "or gate_learning_rate."
        )


def _batch_tokens(inputs: Batch) -> int:
    return max((value.numel() for value in inputs.values() if isinstance(value, torch.Tensor)), default=0)
