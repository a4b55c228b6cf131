"""`PrefixCachingTrainer`: a `transformers.Trainer` that runs the layers below the trained ones once a text."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from sptune.backbones import Backbone, find_backbone
from sptune.errors import InputError
from sptune.model import SPTModel
from sptune.prefix_cache import (
    GIB,
    ROW,
    NumberedCollator,
    PrefixCache,
    PrefixCacheSettings,
    PrefixPlan,
    PrefixProbe,
    TokenTable,
    cache_folders,
    fingerprint,
    number_examples,
    why_not_exact,
)
from sptune.prefix_reader import PrefixReader

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class PrefixCachingTrainer(Trainer):
    """A trainer with a prefix cache in its `train`, wherever that is exact.

    It serves whatever trains only upper layers: prompts, PEFT's LoRA with `layers_to_transform`, blocks that are
    trained themselves. Below the first block with a trained weight, dropout is off.

    Args:
        prefix_cache: how hidden states at the first layer with a trained weight are kept, so that each example goes
            through the layers below once; None to compute them in every epoch. `plan_prefix_cache` tells whether it is
            used.
        **kwargs: what `transformers.Trainer` takes.
    """

    # Attributes that hold datasets which `train` goes through more than once.
    _repeated_datasets: tuple[str, ...] = ("train_dataset", "eval_dataset")

    def __init__(
        self,
        *args: Any,
        prefix_cache: PrefixCacheSettings | None = PrefixCacheSettings(),  # noqa: B008 (it is frozen)
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_cache = prefix_cache
        self._prefix: PrefixCache | None = None
        self._reader: PrefixReader | None = None
        self._below: list[nn.Parameter] | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `transformers.Trainer.train`, with the prefix cache where it is exact."""
        with self._caching_prefix():
            return super().train(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As in transformers; the batch's states below the prompts are read from the cache."""
        with self._reading_prefix(inputs) as inputs:
            return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As in transformers; the batch's states below the prompts are read from the cache."""
        with self._reading_prefix(inputs) as inputs:
            return self._predict_batch(model, inputs, prediction_loss_only, ignore_keys)

    def _predict_batch(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None
    ) -> tuple[Any, Any, Any]:
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def plan_prefix_cache(self) -> PrefixPlan:
        """Whether training will use the prefix cache, and how large it may grow."""
        return self._plan()[0]

    def _plan(self) -> tuple[PrefixPlan, TokenTable | None]:
        settings = self.prefix_cache
        if settings is None:
            return PrefixPlan(reason="it is turned off"), None
        backbone = self._find_backbone()
        if backbone is None:
            return PrefixPlan(reason="the model has no single list of blocks that take hidden states"), None
        layer = first_trained_layer(backbone)
        if layer is None:
            return PrefixPlan(reason="nothing is trained in the blocks"), None
        if layer == 0:
            return PrefixPlan(reason="layer 0 is trained, so nothing lies below"), None
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            return PrefixPlan(reason="it does not go with DeepSpeed, FSDP and DataParallel"), None
        if self.args.torch_compile:
            return PrefixPlan(reason="it would break torch.compile's graph"), None
        if not _is_table(self.train_dataset):
            return PrefixPlan(reason="the training data have no length and index"), None
        try:
            tokens = TokenTable.of(_tables(getattr(self, name) for name in self._repeated_datasets))
        except (KeyError, TypeError, AttributeError, pa.ArrowException):
            return PrefixPlan(reason="the data are no dictionaries with input_ids"), None
        dtype = _states_dtype(backbone) if settings.dtype is None else getattr(torch, settings.dtype)
        size = len(tokens.tokens) * backbone.hidden_size * dtype.itemsize
        # With several processes an example may be another process's in the next epoch, so they share a file.
        in_memory = size <= settings.memory * GIB and self.args.world_size == 1
        folder = None if in_memory else Path(settings.folder or self.args.output_dir or ".")
        return PrefixPlan(layer, backbone.hidden_size, dtype, size, folder), tokens

    def _find_backbone(self) -> Backbone | None:
        model: Any = self.model
        tuner = getattr(model, "base_model", None)
        if isinstance(tuner, SPTModel):
            return tuner.backbone
        try:
            return find_backbone(model.get_base_model() if isinstance(model, PeftModel) else model)
        except InputError:
            return None

    @contextlib.contextmanager
    def _caching_prefix(self) -> Iterator[None]:
        """For the training inside, give every example its number in a cache."""
        plan, tokens = self._plan()
        backbone = self._find_backbone()
        cache = None if tokens is None or backbone is None else self._open_prefix_cache(plan, tokens, backbone)
        if cache is None or backbone is None:
            if plan.reason is not None:
                logger.info("%s", plan)
            yield
            return
        logger.info("%s", plan)
        names = (*self._repeated_datasets, "data_collator")
        before = {name: getattr(self, name) for name in names}
        first = 0
        for name in self._repeated_datasets:
            numbered, first = _numbered(before[name], first)
            setattr(self, name, numbered)
        self.data_collator = NumberedCollator(self.data_collator)
        self._prefix, self._below, finished = cache, None, False
        self._reader = PrefixReader(backbone.base_model, backbone.layers, quiet_below=plan.layer)
        try:
            yield
            finished = True
        finally:
            for name, value in before.items():
                setattr(self, name, value)
            self._reader.remove()
            self._prefix = self._reader = None
            cache.close(remove=finished and not cast(PrefixCacheSettings, self.prefix_cache).keep)

    def _open_prefix_cache(self, plan: PrefixPlan, tokens: TokenTable, backbone: Backbone) -> PrefixCache | None:
        """The cache, or None in every process if one of them cannot have it."""
        settings = self.prefix_cache
        cache, key = None, ""
        if plan.folder is not None:
            precision = "bf16" if self.args.bf16 else "fp16" if self.args.fp16 else "no"
            key = fingerprint(backbone.base_model, plan.layer, tokens, backbone.layers, precision)
        # An error must not leave this context: the other processes wait for its end.
        with self.accelerator.main_process_first():
            try:
                if plan.folder is not None and settings is not None and settings.folder is None:
                    for stale in cache_folders(plan.folder, but=key):
                        shutil.rmtree(stale, ignore_errors=True)
                cache = PrefixCache(plan.layer, tokens, plan.hidden_size, plan.dtype, plan.folder, key)
            except OSError as error:
                logger.warning(
                    "There is no room for the prefix cache (%s); training goes on without it. Free space, choose "
                    "another folder, or store it in a shorter number format.",
                    error,
                )
        opened = torch.tensor(float(cache is not None), device=self.args.device)
        if bool(self.accelerator.gather(opened).min() > 0):
            return cache
        if cache is not None:
            cache.close(remove=False)
        return None

    @contextlib.contextmanager
    def _reading_prefix(self, inputs: Batch) -> Iterator[Batch]:
        """The batch without its examples' numbers, in whose forwards the states below the prompts are read."""
        rows = inputs.get(ROW) if hasattr(inputs, "get") else None
        if rows is None:
            yield inputs
            return
        inputs = {name: value for name, value in inputs.items() if name != ROW}
        cache, model = self._prefix, cast(Any, self.model)
        if cache is not None and not cache.given_up and model.training:
            self._check_prefix(cache, inputs)
        if cache is None or cache.given_up or self._reader is None:
            yield inputs
            return
        with self._reader.reading(cache.rows(rows)):
            yield inputs

    def _check_prefix(self, cache: PrefixCache, inputs: Batch) -> None:
        """Give the cache up if what lies below learns, or if states that are read do not do what computed ones do."""
        reason = None
        if self._below is None:
            reason, self._below = self._try_prefix(cache.layer, self._prepare_inputs(inputs))
        if any(parameter.requires_grad for parameter in self._below):
            reason = "something below it is trained"
        if reason is not None:
            logger.warning("The prefix cache at layer %d is not used: %s.", cache.layer, reason)
            cache.give_up()

    def _try_prefix(self, layer: int, inputs: Any) -> tuple[str | None, list[nn.Parameter]]:
        """Why states read at a layer would not be exact, or None; and the parameters that run below it."""
        model, backbone, reader = cast(Any, self.model), self._find_backbone(), self._reader
        assert backbone is not None
        assert reader is not None
        probes: list[PrefixProbe] = []
        with torch.random.fork_rng(), torch.no_grad(), self.compute_loss_context_manager():
            for seed in (0, 1, 1):
                torch.manual_seed(seed)
                known = probes[1].states if len(probes) == 2 else None
                probe = PrefixProbe(layer, model, backbone.layers, known)
                with probe, reader.reading(probe):
                    self._forward(model, inputs)
                probes.append(probe)
        return why_not_exact(*probes), probes[0].parameters

    def _forward(self, model: nn.Module, inputs: Batch) -> Any:
        """Run the model on a batch, for its states only."""
        return model(**{name: value for name, value in inputs.items() if name != "labels"})


def first_trained_layer(backbone: Backbone) -> int | None:
    """The lowest block with a weight that is trained; None if none has."""
    for index, block in enumerate(backbone.layers):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return index
    return None


def _states_dtype(backbone: Backbone) -> torch.dtype:
    """The dtype of hidden states: that of the blocks' weights, leaving out quantized ones."""
    return next(weight.dtype for weight in backbone.layers.parameters() if weight.is_floating_point())


def _is_table(dataset: Any) -> bool:
    return not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _tables(datasets: Any) -> list[Any]:
    """The tables with examples among datasets and dictionaries of them, in order."""
    flat = [one for dataset in datasets for one in (dataset.values() if isinstance(dataset, dict) else [dataset])]
    return [one for one in flat if _is_table(one) and len(one)]


def _numbered(dataset: Any, first: int) -> tuple[Any, int]:
    """A dataset, or a dictionary of them, numbered from `first` as `_tables` orders them; and the number after."""
    if isinstance(dataset, dict):
        numbered = {}
        for name, one in dataset.items():
            numbered[name], first = _numbered(one, first)
        return numbered, first
    if not _is_table(dataset) or not len(dataset):
        return dataset, first
    return number_examples(dataset, first), first + len(dataset)
