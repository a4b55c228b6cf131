"""`ActivationCachingTrainer`: a `transformers.Trainer` with the activation cache, for any PEFT method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from sptune.renamed import renamed_argument, renamed_method
from sptune.training.caching.activation_caching import ActivationCaching
from sptune.training.caching.cache_plan import ActivationCachePlan
from sptune.training.caching.cache_settings import ActivationCacheSettings

Batch = dict[str, Any]


class ActivationCachingTrainer(Trainer):
    """A `transformers.Trainer` that is faster for models with trained weights in the upper layers only.

    Use it in place of `transformers.Trainer`, with the same arguments:

        config = LoraConfig(task_type="SEQ_CLS", r=8, layers_to_transform=[6, 7, 8, 9, 10, 11])
        trainer = ActivationCachingTrainer(model=get_peft_model(model, config), args=args, train_dataset=data)
        print(trainer.plan_activation_cache())
        trainer.train()

    Frozen layers below the first layer with a trained weight (here layers 0 to 5) give the same hidden states for the
    same text in every epoch. `train` therefore runs them once for each example, in the first epoch, keeps the states
    at the first trained layer, and starts from these states in all later epochs and evaluations. Losses and trained
    weights are those of training without the cache. It does not matter what is trained: LoRA, IA3, LayerNorms, biases
    or whole blocks. Where the cache would not be exact, training runs without it and the log says why.

    During `train`, dropout is off in the frozen parts below the first trained layer, with the cache and without;
    dropout in the layers above is as in `transformers.Trainer`.

    Args:
        activation_cache: how the hidden states are kept; None to compute them in every epoch. `plan_activation_cache`
            tells whether the cache will be used, and how much memory it takes.
        **kwargs: the arguments of `transformers.Trainer`.
    """

    @renamed_argument("prefix_cache", "activation_cache")
    def __init__(
        self,
        *args: Any,
        activation_cache: ActivationCacheSettings | None = ActivationCacheSettings(),  # noqa: B008 (it is frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.caching = ActivationCaching(self, activation_cache)

    def plan_activation_cache(self) -> ActivationCachePlan:
        """Whether training will use the activation cache, and how large it may grow."""
        return self.caching.plan()

    plan_prefix_cache = renamed_method("plan_prefix_cache", "plan_activation_cache")

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        with self.caching.training():  # of the model that `model_init` may just have made
            return super()._inner_training_loop(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As in transformers; the batch's states below the first trained layer are read from the cache."""
        with self.caching.reading(inputs, check=True):
            return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As in transformers; the batch's states below the first trained layer are read from the cache."""
        with self.caching.reading(inputs):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
