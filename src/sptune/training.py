"""`SPTTrainer` trains prompts, `SPTSearchTrainer` trains the search network by DARTS or SPT-DARTS (method section 4).

Both are `transformers.Trainer`, so that logging, checkpoints, mixed precision and data parallelism come from there.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from sptune.errors import InputError
from sptune.flow import before_first_target
from sptune.gates import at_least_float32
from sptune.model import SPTModel
from sptune.prefix_cache import ROW
from sptune.prefix_training import PrefixCachingTrainer
from sptune.search.config import LEARNED_SEARCHERS, SearchConfig
from sptune.search.spt_darts import (
    draw_layer_masks,
    mixed_level_gradient,
    split_halves,
    states_distance,
    symmetric_kl,
)

Batch = dict[str, Any]
ClassScores = Callable[[nn.Module, Batch], torch.Tensor]

GATE_BETAS = (0.5, 0.999)
NO_LOSSES: dict[str, float | None] = {"weight_loss": None, "gate_loss": None, "consistency": None}


class SPTTrainer(PrefixCachingTrainer):
    """A `transformers.Trainer` that knows class scores, caches what lies below the prompts, and gives the head a rate.

    Args:
        class_scores: called with the model and a batch, gives (batch, classes); the loss is then the cross entropy of
            these scores with `batch["labels"]`, and the scores are the predictions. Without it the model's own loss is
            used.
        head_learning_rate: learning rate of what PEFT's `modules_to_save` trains; None for `args.learning_rate`, which
            is that of everything else.
        **kwargs: what `PrefixCachingTrainer` and `transformers.Trainer` take.

    The loss of a micro-batch is its mean times its share of the step's items (examples, or label positions), so that
    gradient accumulation and data parallelism give the gradient of one large batch, whatever the model.
    """

    # Our losses are scaled already. Transformers 5 reads this attribute, 4.57 the one set in the constructor.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        class_scores: ClassScores | None = None,
        head_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.class_scores = class_scores
        self.head_learning_rate = head_learning_rate
        self.model_accepts_loss_kwargs = True
        if class_scores is not None and self.args.label_names is None:
            self.label_names = ["labels"]
        backbone = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self._labels_are_shifted = type(backbone).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    # Losses

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The batch's mean loss, times its share of the step's items if their number is given."""
        loss, outputs = self._mean_loss(model, inputs)
        loss = loss * self._share(inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _predict_batch(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Loss, predictions and labels of a batch; the predictions are the class scores where there are any."""
        if self.class_scores is None:
            return super()._predict_batch(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = at_least_float32(self.class_scores(model, inputs))
            loss = None if labels is None else F.cross_entropy(scores, labels)
        return (loss, None, None) if prediction_loss_only else (loss, scores, labels)

    def _forward(self, model: nn.Module, inputs: Batch) -> Any:
        return super()._forward(model, inputs) if self.class_scores is None else self.class_scores(model, inputs)

    def _mean_loss(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, Any]:
        """The mean loss of a batch and the outputs: a dictionary with the class scores as "logits", or the model's."""
        if self.class_scores is None:
            inputs = dict(inputs)
            if self._labels_are_shifted and self._popped_labels and "labels" in inputs and "source_mask" not in inputs:
                # Trainer takes the labels out before the forward, and the generators would see the targets.
                inputs["source_mask"] = before_first_target(inputs["labels"])
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            # The mean over no label at all is no number.
            return (loss if self._count_items(inputs) else loss.nan_to_num(0.0)), outputs
        scores = at_least_float32(self.class_scores(model, inputs))
        loss = F.cross_entropy(scores, inputs["labels"], label_smoothing=self.args.label_smoothing_factor)
        return loss, {"loss": loss, "logits": scores}

    @property
    def _popped_labels(self) -> bool:
        spt = isinstance(getattr(self.accelerator.unwrap_model(self.model), "base_model", None), SPTModel)
        return spt and (self.label_smoother is not None or self.compute_loss_func is not None)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns: Any = [*columns, "source_mask", ROW]

    def _label_positions(self, labels: torch.Tensor) -> torch.Tensor:
        """Where a label is predicted, as booleans: a causal model predicts none at the first position."""
        if self._labels_are_shifted and self.class_scores is None and labels.dim() > 1:
            labels = labels[:, 1:]
        return labels != -100

    def _count_items(self, inputs: Batch) -> torch.Tensor:
        labels = inputs.get("labels")
        if isinstance(labels, torch.Tensor):
            return self._label_positions(labels).sum()
        return torch.tensor(_batch_size(inputs))

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | None:
        """Items of a whole step, over all its micro-batches and processes."""
        if not batch_samples:
            return None
        items = sum((self._count_items(batch).to(device) for batch in batch_samples), torch.zeros((), device=device))
        return self.accelerator.gather(items).sum() if self.args.world_size > 1 else items

    def _share(self, inputs: Batch, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Items of this batch by items of the step; times the processes, over which gradients are averaged."""
        if num_items_in_batch is None:
            return 1.0
        items = self._count_items(inputs)
        return self.accelerator.num_processes * items / torch.as_tensor(num_items_in_batch, device=items.device)

    # Optimiser

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser `args.optim` names, with groups of their own for the head and the gates."""
        created = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if created:
            _split_groups(optimizer, self._group_options(self.model_wrapped if model is None else model))
        return optimizer

    def _group_options(self, model: nn.Module) -> list[tuple[set[int], dict[str, Any]]]:
        """Identities of the parameters that go into groups of their own, and those groups' options."""
        head = {id(parameter) for name, parameter in model.named_parameters() if "modules_to_save" in name}
        rate = self.args.learning_rate if self.head_learning_rate is None else self.head_learning_rate
        return [(head, {"lr": rate})]

    # Data

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As in transformers, but grouping by length depends on seed and epoch alone, so that runs can be resumed."""
        sampler = super()._get_train_sampler() if train_dataset is None else super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochSampler(sampler, seed)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """The order of the data, also where training groups by length, so that predictions belong to their examples."""
        sampler = super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(cast(Any, eval_dataset)) if isinstance(sampler, LengthGroupedSampler) else sampler


def grouping_by_length() -> dict[str, Any]:
    """The option of `TrainingArguments` for batches of texts of like length; transformers 4 has another name for it."""
    if "group_by_length" in {field.name for field in dataclasses.fields(TrainingArguments)}:
        return {"group_by_length": True}
    return {"train_sampling_strategy": "group_by_length"}


class EpochSampler(Sampler):
    """Orders a length-grouped sampler by seed and epoch instead of by the global random state.

    Args:
        sampler: the sampler, whose `generator` this one sets.
        seed: the order in epoch e depends on seed + e.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch


class GateHistory(TrainerCallback, ExportableState):
    """Keeps the gates of every step, and what else a resumed search needs; checkpoints hold it as a callback's state.

    `entries` is the history of `SearchResult`, `gate_batches` the number of gate batches drawn so far, `losses` those
    of the step under way, and `seconds` the time spent.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.gate_batches = 0
        self.losses: dict[str, float | None] = {}
        self._seconds_before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Time spent in training, that before a resumption included."""
        return self._seconds_before + (0.0 if self._started is None else time.monotonic() - self._started)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"entries": self.entries, "gate_batches": self.gate_batches, "_seconds_before": self.seconds}
        return {"args": {}, "attributes": kept}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint holds, or begin anew."""
        states: Any = state.stateful_callbacks
        kept = states[type(self).__name__] if state.global_step > 0 else GateHistory().state()
        for name, value in kept["attributes"].items():
            setattr(self, name, value)
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step."""
        gates = kwargs["model"].base_model.gate_values().tolist()
        self.entries.append({"step": state.global_step, "gates": gates, **self.losses})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the clock."""
        self._seconds_before, self._started = self.seconds, None


class SPTSearchTrainer(SPTTrainer):
    """Trains generators, head and gates of a search network together, by first-order DARTS or by SPT-DARTS.

    The training data is split in a weight half and a gate half. Every step, for each micro-batch of the weight half and
    one of the gate half: backward on the gate batch, set the alpha gradients aside, restore the weight gradients
    gathered so far, backward on the weight batch. Before the optimiser steps, each alpha gets
    g_alpha = grad L_gate + lambda_m grad L_weight in place (DARTS: lambda_m = 0). In the first `warmup_ratio` of the
    steps, and between those that `gate_interval` says, there is no gate batch and no alpha moves.

    In SPT-DARTS each example stands twice in its batch, under independent layer masks, and a consistency penalty joins
    both losses.

    Args:
        model: a search network, `get_peft_model(backbone, SPTConfig(prompt_layers="search"))`.
        args: training arguments; epochs count over the weight half.
        train_dataset: all the training data.
        search: how to search; its searcher is "spt_darts" or "darts".
        **kwargs: what `SPTTrainer` takes.

    Raises:
        InputError: the model has no gates, the searcher needs no training, the data cannot be split, or the run is
            distributed in a way that hides gradients (DeepSpeed, FSDP, DataParallel).
    """

    _repeated_datasets = (*SPTTrainer._repeated_datasets, "gate_dataset")

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
        alphas = tuner.gate_parameters()
        if search.searcher not in LEARNED_SEARCHERS:
            raise InputError(
                f"searcher={search.searcher!r} needs no training; SPTSearchTrainer takes "
                f"{', '.join(LEARNED_SEARCHERS)}, search_prompt_layers takes all."
            )
        self.search = search
        self.tuner = tuner
        weight_dataset, self.gate_dataset = _split_dataset(train_dataset, search)
        super().__init__(model, args, train_dataset=weight_dataset, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            raise InputError(
                "The search needs every gradient in its place, which DeepSpeed, FSDP and torch's DataParallel "
                "do not give; start one process for each GPU with 'accelerate launch' and plain data parallelism, "
                "or let the search see one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        self._alphas: list[nn.Parameter] = [alphas[layer] for layer in sorted(alphas)]
        is_alpha = {id(alpha) for alpha in self._alphas}
        self._weights = [
            parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in is_alpha
        ]
        self._masked = search.searcher == "spt_darts"
        self._mixed_level_weight = search.mixed_level_weight if self._masked else 0.0
        self._gate_iterator: Iterator[Batch] | None = None
        self._gate_batches: deque[Batch] = deque()
        self._gate_items: torch.Tensor | None = None
        self._begin_anew()
        self.add_callback(GateHistory())

    @property
    def gate_history(self) -> GateHistory:
        """What the search has recorded so far."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, GateHistory))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `transformers.Trainer.train`.

        Raises:
            InputError: the checkpoint is not one of a search.
        """
        if resume_from_checkpoint:
            last = resume_from_checkpoint is True
            _check_checkpoint(get_last_checkpoint(self.args.output_dir) if last else resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def estimate_seconds(self) -> float:
        """What the search will take, from a few timed passes that leave no trace; to be called before `train`."""
        model = cast(nn.Module, self.model)
        was_training, seconds = model.training, []
        with torch.random.fork_rng():
            # Batches of texts of like length differ much in size, so one of middling size is timed.
            some = sorted(islice(self.get_train_dataloader(), 9), key=_batch_tokens)
            inputs = some[len(some) // 2]
            model.to(self.args.device).train()
            for _ in range(3):
                started = time.monotonic()
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(inputs))
                loss.backward()
                loss.item()  # waits for an accelerator
                seconds.append(time.monotonic() - started)
        model.zero_grad()
        model.train(was_training)
        self._begin_anew()
        micro_batches = self.args.gradient_accumulation_steps
        steps = self.args.max_steps
        if steps <= 0:
            steps = math.ceil(self.args.num_train_epochs * len(self.get_train_dataloader()) / micro_batches)
        gate_steps = math.ceil((steps - self._warmup_steps(steps)) / self.search.gate_interval)
        return min(seconds[1:]) * micro_batches * (steps + gate_steps)

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
        self.gate_history.losses = {**NO_LOSSES, **dict(zip(names, losses, strict=True))}
        self._begin_step()

    def _begin_step(self) -> None:
        self._alpha_gradients: dict[str, list[torch.Tensor | None]] = {
            half: [None] * len(self._alphas) for half in ("gate", "weight")
        }
        self._losses: dict[str, torch.Tensor] = {}
        self._mask_draws = 0

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
        if self._masked:
            loss, consistency, outputs = self._masked_loss(model, inputs)
        else:
            loss, outputs = self._mean_loss(model, inputs)
            consistency = None
        share = self._share(inputs, num_items_in_batch)
        self._record(f"{self._half}_loss", loss * share)
        if consistency is not None:
            if self._half == "weight":
                self._record("consistency", consistency * share)
            loss = loss + self.search.consistency_weight * consistency
        loss = loss * share
        return (loss, outputs) if return_outputs else loss

    def _masked_loss(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Mean task loss over both runs of each example, their consistency C, and the outputs of the batch of 2B."""
        size = _batch_size(inputs)
        twice = _repeat(inputs)
        masks = self._draw_masks(2 * size).to(self._alphas[0].device)
        with self.tuner.layer_masks(masks):
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
        """Layer masks for `size` runs.

        They follow from the seed, the step, the draw within the step and the process: a resumed search draws what it
        would have drawn.
        """
        draw = self.state.global_step * 2 * self.args.gradient_accumulation_steps + self._mask_draws
        self._mask_draws += 1
        seed = (self.search.seed + 1) * 1_000_003 + draw * max(self.args.world_size, 1) + self.args.process_index
        generator = torch.Generator().manual_seed(seed)
        return draw_layer_masks(size, len(self._alphas), self.search.mask_probability, generator)

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
                self._gate_iterator = self._iterate_gate_batches(self.gate_history.gate_batches)
            with torch.random.fork_rng(devices=[]):  # starting a data loader draws from the global random state
                self._gate_batches = deque(islice(self._gate_iterator, len(samples)))
            self.gate_history.gate_batches += len(samples)
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


def _check_checkpoint(checkpoint: Any) -> None:
    state_file = Path(checkpoint, TRAINER_STATE_NAME) if checkpoint else None
    if state_file is None or not state_file.is_file():
        return  # transformers says what is missing
    if GateHistory.__name__ not in TrainerState.load_from_json(str(state_file)).stateful_callbacks:
        raise InputError(
            f"{checkpoint} holds no history of gates, so a search cannot go on from it; resume from a checkpoint that "
            "a search wrote, or begin anew."
        )


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


def _split_groups(optimizer: torch.optim.Optimizer, special: list[tuple[set[int], dict[str, Any]]]) -> None:
    """Move parameters of an optimiser that has not stepped yet into groups of their own.

    Args:
        optimizer: its `param_groups` are changed in place; what remains of the old groups comes first.
        special: identities of parameters, and the options in which their group differs; options that the optimiser
            does not know, such as betas in SGD, are left out.
    """
    remaining, moved = [], []
    for group in optimizer.param_groups:
        parameters = group.pop("params")
        for members, changes in special:
            taken = [parameter for parameter in parameters if id(parameter) in members]
            parameters = [parameter for parameter in parameters if id(parameter) not in members]
            if taken:
                changes = {name: value for name, value in changes.items() if name in group or name == "gates"}
                moved.append({"params": taken, **group, **changes})
        if parameters:
            remaining.append({"params": parameters, **group})
    optimizer.param_groups[:] = remaining + moved


def _split_dataset(dataset: Dataset, search: SearchConfig) -> tuple[Dataset, Dataset]:
    """The weight half and the gate half of the training data."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"The search splits its training data in two and cannot split a {type(dataset).__name__} without a length; "
            "give a dataset with a length and an index."
        )
    size = len(dataset)
    if size < 2:
        raise InputError(f"The training data holds {size} example(s); the search needs at least 2, one for each half.")
    halves = split_halves(_class_labels(dataset), size, gate_fraction=search.gate_fraction, seed=search.seed)
    if hasattr(dataset, "select"):
        return dataset.select(halves[0]), dataset.select(halves[1])
    return Subset(dataset, halves[0]), Subset(dataset, halves[1])


def _class_labels(dataset: Any) -> list[int] | None:
    """The column "labels", if it holds a class index for every example."""
    names = ("labels", "label")  # transformers' collators rename the second to the first
    if hasattr(dataset, "column_names"):
        column: Any = next((dataset[name] for name in names if name in dataset.column_names), [])
    else:
        examples = (dataset[index] for index in range(len(dataset)))
        column = [example[name] for example in examples for name in names if name in example]
    try:
        labels = torch.as_tensor(list(column))
    except (TypeError, ValueError, RuntimeError):
        return None
    return labels.tolist() if labels.shape == (len(dataset),) and not labels.is_floating_point() else None


def _batch_size(inputs: Batch) -> int:
    return next(value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor) and value.dim() > 0)


def _batch_tokens(inputs: Batch) -> int:
    return max((value.numel() for value in inputs.values() if isinstance(value, torch.Tensor)), default=0)


def _repeat(inputs: Batch) -> Batch:
    """The batch of 2B that holds each example twice: examples 0 ... B-1, then again 0 ... B-1."""
    size = _batch_size(inputs)
    return {
        name: torch.cat([value, value])
        if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for name, value in inputs.items()
    }
