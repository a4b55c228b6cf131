"""`SupernetTrainer`: the training of a supernet, as far as it is the same for all searchers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sized
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput

from sptune.errors import InputError
from sptune.modeling.gates import at_least_float32
from sptune.modeling.model import SPTModel
from sptune.modeling.problem_types import REGRESSION, problem_loss
from sptune.search.data_split import split_dataset
from sptune.search.held_out import HeldOutLosses
from sptune.search.history import SearchHistory, check_search_checkpoint, entry_logs
from sptune.search.search_config import SearchConfig
from sptune.training.attention_kernel import fast_attention
from sptune.training.data_order import steps_of_epoch
from sptune.training.trainer import SPTTrainer

Batch = dict[str, Any]


class SupernetTrainer(SPTTrainer):
    """Trains a supernet on the weight split of the data and measures it on the architecture split.

    Args:
        model: a supernet, `get_peft_model(backbone, SPTConfig(prompt_layers="search"))`.
        args: training arguments; epochs count over the weight split.
        train_dataset: all the training data; `train_dataset` becomes the weight split, `architecture_dataset` the
            architecture split.
        search: how to search.
        **kwargs: the arguments of `SPTTrainer`.

    Raises:
        InputError: the model has no gates, the searcher does not fit this class, the data cannot be split, or the run
            is distributed in a way that hides gradients (DeepSpeed, FSDP, DataParallel).
    """

    _rates = "learning_rate, head_learning_rate or gate_learning_rate"
    # The values of `SearchConfig.searcher` that it accepts, and whether it trains gates.
    searchers: tuple[str, ...]
    gated = False

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
                f"{type(model).__name__} has no gates to learn; search with a supernet made by "
                "get_peft_model(backbone, SPTConfig(prompt_layers='search'))."
            )
        tuner.gate_parameters()
        if search.searcher not in self.searchers:
            raise InputError(
                f"{type(self).__name__} does not train for searcher={search.searcher!r}; it takes "
                f"{', '.join(self.searchers)}, and search_prompt_layers takes all searchers."
            )
        self.search = search
        self.tuner = tuner
        weight_dataset, self.architecture_dataset = split_dataset(train_dataset, search)
        super().__init__(model, args, train_dataset=weight_dataset, **kwargs)
        self.caching.datasets = (*self.caching.datasets, "architecture_dataset")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            raise InputError(
                "The search does not work with DeepSpeed, FSDP and torch's DataParallel, which hide gradients; start "
                "one process for each GPU with 'accelerate launch' and plain data parallelism, or let the search see "
                "one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if self.optimizer is not None:
            raise InputError(
                "The search makes its own optimizer, with separate learning rates for gates and head; leave "
                "optimizers= out and choose TrainingArguments(optim=...)."
            )
        self.add_callback(SearchHistory(gates=self.gated))
        self._draws = (-1, 0)
        self.held_out = HeldOutLosses(self)
        # Messages to the user about the selection.
        self.remarks: list[str] = []

    @property
    def history(self) -> SearchHistory:
        """The record of the search so far."""
        history = SearchHistory.of(self)
        history.read_gates = self.gates  # transformers may have restored another object from a checkpoint
        return history

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `transformers.Trainer.train`.

        Raises:
            InputError: the checkpoint is not one of a search.
        """
        check_search_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self._draws = (-1, 0)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`; the logs of a step also have the losses of the search and the gates."""
        entries = self.history.entries
        if "loss" in logs and entries:
            logs = {**entry_logs(entries[-1], self.tuner.generator_layers), **logs}
        super().log(logs, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of the weight split.

        Raises:
            InputError: there are none.
        """
        loader = super().get_train_dataloader()
        check_batches(len(loader), self._train_batch_size, "weight split", "lower gate_fraction")
        return loader

    def estimate_seconds(self) -> float:
        """The seconds that the training will take, from two timed passes without a trace; called before `train`."""
        model = cast(nn.Module, self.model)
        was_training, seconds = model.training, 0.0
        with torch.random.fork_rng():
            # With texts grouped by length batches differ much in size, so one of medium size is timed.
            some = sorted(islice(self.get_train_dataloader(), 9), key=_batch_tokens)
            inputs = some[len(some) // 2]
            if self.place_model_on_device:  # not a model that is split over devices
                model.to(self.args.device)
            model.train()
            for _ in range(2):  # the first one warms up
                started = time.monotonic()
                with fast_attention(self, inputs):
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
        """The number of passes over a batch, forward and backward, of a training with this many steps."""
        return steps

    def draw_generator(self) -> torch.Generator:
        """The generator for a batch's random layers, the same in all processes.

        It depends on the seed, the step and the draw within the step, so that a resumed search makes the same draws.
        """
        step, draw = self._draws
        draw = draw + 1 if step == self.state.global_step else 0
        self._draws = (self.state.global_step, draw)
        draw += self.state.global_step * 2 * self.args.gradient_accumulation_steps
        seed = (self.search.seed + 1) * 1_000_003 + draw
        return torch.Generator().manual_seed(seed)

    def draw_rows(self, draw: Callable[[int, torch.Generator], torch.Tensor], size: int) -> torch.Tensor:
        """This process's part of a draw of random layers, as if the batches of all processes were one.

        Args:
            draw: from a number of examples and a generator, random layers (..., examples, candidates).
            size: the number of examples in this process's batch.

        Returns:
            (..., size, candidates).
        """
        sizes = self.batch_sizes(size)
        first = sum(sizes[: self.args.process_index])
        return draw(sum(sizes), self.draw_generator())[..., first : first + size, :]

    def batch_sizes(self, size: int) -> list[int]:
        """The number of examples in each process's batch, which differ in the last step of an epoch.

        Args:
            size: that of this process.
        """
        if self.args.world_size <= 1:
            return [size]
        sizes: list[int] = self.accelerator.gather(torch.tensor([size], device=self.args.device)).tolist()
        return sizes

    def gates(self) -> list[float] | None:
        """The gate of each candidate layer, as training has left it; None if it trains none."""
        return None

    def row_losses(self, model: nn.Module, inputs: Batch) -> torch.Tensor:
        """The loss of each row of a batch, (batch,); of a language model the mean over the row's labels.

        Raises:
            InputError: the loss is a user's function, which gives no losses of rows.
        """
        if self.compute_loss_func is not None:
            raise InputError(
                f"searcher={self.search.searcher!r} needs the loss of each example, which compute_loss_func does not "
                "give; leave it out, or choose another searcher."
            )
        if self.items.labels(inputs) is None:
            raise InputError("The batch has no labels, which the search needs.")
        inputs = self.at_labels(model, inputs)
        labels = self.items.labels(inputs)
        smoothing = self.args.label_smoothing_factor
        if self.class_scores is not None:
            logits = at_least_float32(self.class_scores(model, inputs))
            if self.class_loss is not None:
                return self.class_loss(logits, labels)
        else:
            logits = at_least_float32(logits_of(model(**inputs)))
        if logits.dim() == 2 or labels.is_floating_point():
            kind = self.scores_type(logits)
            losses = problem_loss(kind, logits, labels, reduction="none", label_smoothing=smoothing)
            return losses.view(len(labels), -1).mean(1)
        if self.items.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=smoothing)
        return losses.sum(1) / (labels != -100).sum(1).clamp_min(1)

    def scores_type(self, scores: torch.Tensor) -> str:
        """The problem type of class scores, or of a model's logits after a forward with labels."""
        if self.class_scores is not None:
            return self.problem_type
        # The model's own loss goes by its configuration, where most models note what they take the labels for.
        noted: str | None = getattr(self.tuner.model.config, "problem_type", None)
        return noted or (REGRESSION if scores.shape[-1] == 1 else self.problem_type)


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits of a model's outputs that begin with a loss; with `return_dict=False` they are a tuple."""
    logits: torch.Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
    return logits


def planned_steps(args: TrainingArguments, examples: int) -> int:
    """The number of optimizer steps for this many examples."""
    if args.max_steps > 0:
        return args.max_steps
    steps = steps_of_epoch(batches_of_epoch(args, examples), args.gradient_accumulation_steps)
    return max(1, math.ceil(args.num_train_epochs * steps))


def batches_of_epoch(args: TrainingArguments, examples: int) -> int:
    """The number of batches that each process makes of this many examples."""
    batches = examples / (args.train_batch_size * max(args.world_size, 1))
    return math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)


def check_batches(number: int, size: int, split: str, remedy: str) -> None:
    """Refuse a split of the data that makes no batch.

    Raises:
        InputError: `number` is 0.
    """
    if number == 0:
        raise InputError(
            f"The {split} has fewer examples than one batch of {size}; lower the batch size, {remedy}, or set "
            "dataloader_drop_last=False."
        )


def check_discrete(trainer: SupernetTrainer) -> None:
    """Refuse prompts whose gates of 0 and 1 do not make a discrete network.

    Raises:
        InputError: `visibility="always"`.
    """
    config: Any = trainer.tuner.peft_config[trainer.tuner.active_adapters[0]]
    if config.visibility == "always":
        raise InputError(
            f"visibility='always' has no effect with searcher={trainer.search.searcher!r}, which trains discrete "
            "networks; leave it out, or search with spt_darts."
        )


def _batch_tokens(inputs: Batch) -> int:
    return max((value.numel() for value in inputs.values() if isinstance(value, torch.Tensor)), default=0)
