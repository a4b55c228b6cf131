"""`SPTTrainer` trains prompts.

It is a `transformers.Trainer`, so that logging, checkpoints, mixed precision and data parallelism come from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import TrainOutput

from sptune.errors import InputError
from sptune.modeling.gates import at_least_float32
from sptune.modeling.labeled_positions import at_labels, takes_source_mask, with_source_mask
from sptune.modeling.loading import HEADS
from sptune.modeling.problem_types import SINGLE_LABEL, check_problem_type, problem_loss
from sptune.renamed import renamed_argument, renamed_method
from sptune.training.attention_kernel import fast_attention
from sptune.training.caching.activation_caching import ActivationCaching
from sptune.training.caching.cache_plan import ActivationCachePlan
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.checkpoints import (
    check_shared_resume,
    has_all_steps,
    last_checkpoint,
    load_finished,
    trainer_state,
)
from sptune.training.divergence import DivergenceCheck
from sptune.training.loss_items import LossItems
from sptune.training.optimizer_groups import split_groups
from sptune.training.ordered_trainer import OrderedTrainer

Batch = dict[str, Any]
ClassScores = Callable[[nn.Module, Batch], torch.Tensor]
RowLosses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SPTTrainer(OrderedTrainer):
    """A `transformers.Trainer` with class scores, the activation cache, and a learning rate of the head.

    Args:
        class_scores: function of the model and a batch that gives (batch, classes). These scores are the predictions,
            and the loss is that of `problem_type` with the batch's labels (`args.label_names`, "labels" by default), or
            `compute_loss_func` with the scores as `logits` of the outputs. None for the model's own loss.
        problem_type: what the class scores mean, in transformers' words, and with that their loss; see `problem_loss`.
            None for "single_label_classification"; the others are "multi_label_classification" and "regression".
        class_loss: gives the loss of each row from class scores and labels, such as a `ClassLoss`; None for the above.
        head_learning_rate: learning rate of the head; None for `args.learning_rate`, the rate of all other weights.
        head_modules: names of the modules of the head, in addition to PEFT's `modules_to_save`; each is one part of a
            dotted name, such as "pooler".
        activation_cache: as in `ActivationCachingTrainer`.
        predict_at_labels: whether the predictions of a causal language model, and the labels that come with them, are
            those of the positions that predict a label in some row of the batch, as if the text had no others.
        **kwargs: the arguments of `transformers.Trainer`.

    The loss of a micro-batch is its mean times its share of the step's items (examples, or label positions), so that
    gradient accumulation and data parallelism give the gradient of one large batch, whatever the model. A
    `compute_loss_func` therefore receives the number of items of its own batch.

    Raises:
        InputError: no or several names of labels of `class_scores`, `class_loss` without these, an unknown
            `problem_type`, label smoothing of another loss, `head_learning_rate` with an optimizer of your own, or
            FSDP or DeepSpeed on CPUs.
    """

    # Options of the learning rates, for messages.
    _rates = "learning_rate or head_learning_rate"
    # Our losses are scaled already. Transformers 5 reads this attribute, 4.57 the one set in the constructor.
    loss_is_scaled_for_ga = True

    @renamed_argument("prefix_cache", "activation_cache")
    def __init__(
        self,
        *args: Any,
        class_scores: ClassScores | None = None,
        problem_type: str | None = None,
        class_loss: RowLosses | None = None,
        head_learning_rate: float | None = None,
        head_modules: Collection[str] = HEADS,
        activation_cache: ActivationCacheSettings | None = ActivationCacheSettings(),  # noqa: B008 (it is frozen)
        predict_at_labels: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_problem_type(problem_type, self.args.label_smoothing_factor)
        _check_class_loss(class_loss, class_scores, self.args.label_smoothing_factor)
        self.caching = ActivationCaching(self, activation_cache, self._trial_loss)
        self.predict_at_labels = predict_at_labels
        self.class_scores = class_scores
        self.problem_type, self.class_loss = problem_type or SINGLE_LABEL, class_loss
        self.head_learning_rate = head_learning_rate
        self.head_modules = head_modules
        self.model_accepts_loss_kwargs = True
        if class_scores is not None:
            self.label_names = _one_label_name(self.args.label_names)
            # Predictions that are preprocessed are no scores any more; their loss is Trainer's, from `prediction_step`.
            whole = self.preprocess_logits_for_metrics is None and not self.args.batch_eval_metrics
            if self.compute_metrics is not None and whole:
                self.compute_metrics = partial(_with_loss, self.compute_metrics, self._loss_of_scores)
        _check_rate(head_learning_rate, self.optimizer)
        _check_sharding(self)
        self._check_divergence = DivergenceCheck(self._rates)
        bare: Any = getattr(self.model, "_orig_mod", self.model)  # without the wrapper of torch.compile
        backbone = bare.get_base_model() if isinstance(bare, PeftModel) else bare
        self._is_causal = type(backbone).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.items = LossItems(self.label_names, shifted=self._is_causal and class_scores is None)
        if self.compute_loss_func is not None:
            self.compute_loss_func = self.items.with_count(self.compute_loss_func)

    def plan_activation_cache(self) -> ActivationCachePlan:
        """Whether training will use the activation cache, and how large it may grow."""
        return self.caching.plan()

    plan_prefix_cache = renamed_method("plan_prefix_cache", "plan_activation_cache")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `transformers.Trainer`; a checkpoint that has all steps of the arguments is loaded without a step.

        Raises:
            InputError: several processes on CPUs are to resume, which the installed transformers cannot, or no
                checkpoint was written to its end.
            SptuneError: the training diverged: trained weights are no longer finite.
        """
        checkpoint = last_checkpoint(self.args.output_dir, resume_from_checkpoint)
        state = trainer_state(checkpoint)
        if checkpoint is None or state is None or not has_all_steps(self, state):
            if checkpoint is not None:
                check_shared_resume(self.args)
            return super().train(checkpoint or resume_from_checkpoint, *args, **kwargs)
        return load_finished(self, checkpoint, state)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with self.caching.training():  # of the model that `model_init` may just have made
            return super()._inner_training_loop(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, *args: Any, **kwargs: Any
    ) -> None:
        # Steps of fp16 overflow now and then; its loss scaling skips them.
        if grad_norm is not None and not self.args.fp16:
            self._check_divergence(cast(nn.Module, self.model), self.state.global_step, float(grad_norm))
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    # Losses

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As in `transformers.Trainer`, with the fast attention kernel and the activation cache."""
        fast = fast_attention(self, inputs)
        with fast, self.caching.reading(inputs, check=True):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The batch's mean loss; in training, times its share of the step's items if their number is given."""
        loss, outputs = self._mean_loss(model, inputs, all_logits=return_outputs)
        if model.training:
            loss = loss * self._share(inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Loss, predictions and labels of a batch; the predictions are the class scores where there are any."""
        with self.caching.reading(inputs):
            if self.class_scores is None:
                if prediction_loss_only or self.predict_at_labels:
                    inputs = self.at_labels(model, inputs)
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return self._predict_scores(model, cast(Batch, self._prepare_inputs(inputs)), prediction_loss_only)

    def _predict_scores(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        assert self.class_scores is not None
        labels = self.items.labels(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = at_least_float32(self.class_scores(model, inputs))
            loss = None if labels is None else self._loss_of_scores(scores, labels)
        return (loss, None, None) if prediction_loss_only else (loss, scores, labels)

    def _trial_loss(self, model: nn.Module, inputs: Batch) -> torch.Tensor | None:
        """The mean loss of a batch, by which a trial finds out whether the activation cache is exact."""
        if self.items.labels(inputs) is None:
            return self.caching.loss_with_labels(model, inputs) if self.class_scores is None else None
        return self._mean_loss(model, inputs)[0]

    def at_labels(self, model: nn.Module, inputs: Batch) -> Batch:
        """The inputs for logits only where the loss needs them; functions of the user may need any."""
        own = self.class_scores is None and self.compute_loss_func is None
        return at_labels(model, inputs) if own else inputs

    def _mean_loss(self, model: nn.Module, inputs: Batch, all_logits: bool = False) -> tuple[torch.Tensor, Any]:
        """The mean loss of a batch, and {"logits": class scores} or the model's outputs, with all logits or some."""
        if self.class_scores is None:
            # Trainer may take the labels out before the forward.
            inputs = with_source_mask(model, inputs) if self._is_causal else dict(inputs)
            if not all_logits:
                inputs = self.at_labels(model, inputs)
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            # The mean over no label at all is not a number.
            return (loss if self.items.count(inputs) else loss.nan_to_num(0.0)), outputs
        scores = at_least_float32(self.class_scores(model, inputs))
        labels = self.items.labels(inputs)
        if labels is None:
            raise InputError(
                f"The batch has no {self.label_names[0]!r} to compare class_scores with, only {', '.join(inputs)}; "
                "name the column of the labels in TrainingArguments(label_names=[...])."
            )
        loss = self._loss_of_scores(scores, labels)
        return loss, {"loss": loss, "logits": scores}

    def _loss_of_scores(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss of class scores (batch, classes) with labels; see `problem_loss` for their shape."""
        if self.compute_loss_func is not None:
            loss = self.compute_loss_func(SequenceClassifierOutput(logits=scores), labels)
        elif self.class_loss is not None:
            loss = self.class_loss(scores, labels).sum() / self.items.positions(labels).sum().clamp_min(1)
        else:
            smoothing = self.args.label_smoothing_factor
            loss = problem_loss(self.problem_type, scores, labels, label_smoothing=smoothing)
        return loss if self.items.positions(labels).any() else loss.nan_to_num(0.0)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._is_causal and takes_source_mask(cast(nn.Module, self.model)):
            columns: list[str] = self._signature_columns or []
            self._signature_columns: Any = [*columns, *({"source_mask"} - {*columns})]

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor | None:
        """Items of a whole step, over all its micro-batches and processes."""
        if not batch_samples:
            return None
        items = sum((self.items.count(batch).to(device) for batch in batch_samples), torch.zeros((), device=device))
        return self.accelerator.gather(items).sum() if self.args.world_size > 1 else items

    def _share(self, inputs: Batch, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Items of this batch / items of the step, times the number of processes, over which gradients are averaged.

        It is 0 in a step without any item.
        """
        if num_items_in_batch is None:
            return 1.0
        items = self.items.count(inputs)
        step = torch.as_tensor(num_items_in_batch, device=items.device).clamp_min(1)
        return self.accelerator.num_processes * items / step

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of `args.optim`, with separate parameter groups for the head and the gates."""
        created = self.optimizer is None
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if created:
            split_groups(optimizer, self._group_options(self.model_wrapped if model is None else model))
        return optimizer

    def _group_options(self, model: nn.Module) -> list[tuple[set[int], dict[str, Any]]]:
        """Identities of the parameters in separate groups, and the options of those groups."""
        if self.head_learning_rate is None:
            return []  # the groups are those of transformers, so that either trainer can resume the other's checkpoints
        heads = {"modules_to_save", *self.head_modules}
        head = {id(parameter) for name, parameter in model.named_parameters() if heads & set(name.split("."))}
        return [(head, {"lr": self.head_learning_rate})]


def _one_label_name(names: list[str] | None) -> list[str]:
    """The column of labels that class scores are compared with."""
    if names is not None and len(names) != 1:
        raise InputError(
            f"label_names={names}, but class_scores are compared with one column of labels; name that one in "
            "TrainingArguments, or leave label_names out for 'labels'."
        )
    return ["labels"] if names is None else names


def _check_class_loss(class_loss: RowLosses | None, class_scores: ClassScores | None, smoothing: float) -> None:
    if class_loss is not None and class_scores is None:
        raise InputError("class_loss is a function of class scores; give class_scores=, too, or leave it out.")
    if class_loss is not None and smoothing:
        raise InputError(f"label_smoothing_factor={smoothing} has no effect with class_loss; leave one of the two out.")


def _check_rate(head_learning_rate: float | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse a rate of the head beside an optimizer of the user's own."""
    if head_learning_rate is not None and optimizer is not None:
        raise InputError(
            f"head_learning_rate={head_learning_rate} has no effect on an optimizer that you pass in optimizers=; "
            "give the head's parameters their own group and rate there, or leave one of the two out."
        )


def _check_sharding(trainer: Trainer) -> None:
    """Refuse to shard a model where Accelerate ignores the wish."""
    args = trainer.args
    if (args.fsdp and not trainer.is_fsdp_enabled) or (args.deepspeed and not trainer.is_deepspeed_enabled):
        raise InputError(
            "fsdp and deepspeed shard models over GPUs. On CPUs Accelerate ignores them, and each process would hold "
            "the whole model; leave them out of TrainingArguments, or run on GPUs."
        )


def _with_loss(
    compute_metrics: Callable[[Any], dict[str, Any]],
    loss_of_scores: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    outcome: Any,
) -> dict[str, Any]:
    """The metrics, and the mean loss of all examples; Trainer's is that of batches which processes have filled up."""
    loss = loss_of_scores(torch.as_tensor(outcome.predictions), torch.as_tensor(outcome.label_ids))
    return {"loss": loss.item(), **compute_metrics(outcome)}
