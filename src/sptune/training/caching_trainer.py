"""`PrefixCachingTrainer`: a `transformers.Trainer` that runs the layers below the trained ones once a text."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from sptune.errors import InputError
from sptune.modeling.backbones import REFUSED_ROPE_TYPES, Backbone, find_backbone, rope_type
from sptune.modeling.calls import WrappedMethod
from sptune.modeling.model import SPTModel
from sptune.training.activation_cache import (
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
from sptune.training.cached_forward import PrefixReader

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class PrefixCachingTrainer(Trainer):
    """A `transformers.Trainer` that is faster for models whose upper layers alone are trained.

    Use it in place of `transformers.Trainer`, with the same arguments:

        config = LoraConfig(task_type="SEQ_CLS", r=8, layers_to_transform=[6, 7, 8, 9, 10, 11])
        trainer = PrefixCachingTrainer(model=get_peft_model(model, config), args=args, train_dataset=data)
        print(trainer.plan_prefix_cache())
        trainer.train()

    Frozen layers below the first layer with a trained weight (here layers 0 to 5) give the same hidden states for the
    same text in every epoch. `train` therefore runs them once for each example, in the first epoch, keeps the states
    at the first trained layer, and starts from these states in all later epochs and evaluations. Losses and trained
    weights are those of training without the cache. It does not matter what is trained: LoRA, IA3, LayerNorms, biases
    or whole blocks. Where the cache would not be exact, training runs without it and the log says why.

    During `train`, dropout is off in the frozen parts below the first trained layer, with the cache and without;
    dropout in the layers above is as in `transformers.Trainer`.

    Args:
        prefix_cache: how the hidden states are kept; None to compute them in every epoch. `plan_prefix_cache` tells
            whether the cache will be used, and how much memory it takes.
        **kwargs: the arguments of `transformers.Trainer`.
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
        self._adapters: set[str] = set()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `transformers.Trainer.train`, with the prefix cache where it is exact."""
        with self._without_dropout_below(), self._caching_prefix():
            return super().train(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As in transformers; the batch's states below the first trained layer are read from the cache."""
        with self._reading_prefix(inputs, check=True) as inputs:
            return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As in transformers; the batch's states below the first trained layer are read from the cache."""
        with self._reading_prefix(inputs) as inputs:
            return self._predict_batch(model, inputs, prediction_loss_only, ignore_keys)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        self._signature_columns: Any = [*columns, *({ROW} - {*columns})]

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
        if getattr(self.args, "neftune_noise_alpha", None) is not None:
            return PrefixPlan(reason="neftune_noise_alpha puts noise on the embeddings"), None
        if rope_type(getattr(backbone.base_model, "config", None)) in REFUSED_ROPE_TYPES:
            return PrefixPlan(reason="rotary positions change with the length of the batch"), None
        if not _is_table(self.train_dataset):
            return PrefixPlan(reason="the training data have no length and index"), None
        try:
            tokens = TokenTable.of(_tables(getattr(self, name) for name in self._repeated_datasets))
        except (KeyError, TypeError, AttributeError, pa.ArrowException):
            return PrefixPlan(reason="the data are no dictionaries with input_ids"), None
        dtype = _dtype_below(backbone, layer) if settings.dtype is None else getattr(torch, settings.dtype)
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
    def _without_dropout_below(self) -> Iterator[None]:
        """For the training inside, turn dropout off in what is frozen below the first trained layer.

        States would not repeat with it, and training must not depend on whether they are cached.
        """
        backbone = self._find_backbone()
        layer = None if backbone is None else first_trained_layer(backbone)
        if backbone is None or not layer:
            yield
            return
        base_model, above = backbone.base_model, backbone.layers[layer:]
        frozen = [one for one in _frozen_parts(base_model, {*above}) if "train" not in vars(one)]

        def set_mode(method: WrappedMethod, mode: bool = True) -> nn.Module:
            method.method(mode)
            for module in frozen:
                # Modules that check for gradient checkpointing do so in training mode only.
                if not getattr(module, "gradient_checkpointing", False):
                    module.training = False
            return base_model

        wrapped = WrappedMethod(base_model, "train", set_mode)
        try:
            yield
        finally:
            wrapped.remove()

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
        self._adapters = set(_active_adapters(self.model))
        self._reader = PrefixReader(backbone.base_model, backbone.layers, self._same_adapters)
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
    def _reading_prefix(self, inputs: Batch, *, check: bool = False) -> Iterator[Batch]:
        """The batch without its examples' numbers, in whose forwards the states below the trained layers are read.

        Args:
            inputs: the batch.
            check: whether to make sure first that the states are exact.
        """
        rows = inputs.get(ROW) if hasattr(inputs, "get") else None
        if rows is None:
            yield inputs
            return
        inputs = {name: value for name, value in inputs.items() if name != ROW}
        cache = self._prefix
        if cache is not None and not cache.given_up and check:
            self._check_prefix(cache, inputs)
        if cache is None or cache.given_up or self._reader is None:
            yield inputs
            return
        with self._reader.reading(cache.rows(rows)):
            yield inputs

    def _same_adapters(self) -> bool:
        """Whether no adapter is active that was not when training began: it might act below the cached layer."""
        return set(_active_adapters(self.model)) <= self._adapters

    def _check_prefix(self, cache: PrefixCache, inputs: Batch) -> None:
        """Give the cache up if what lies below learns, or if states that are read do not do what computed ones do."""
        reason = None
        if self._below is None:
            cast(nn.Module, self.model).train()  # an evaluation before the first step leaves it in evaluation mode
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
                    loss = self._probing_loss(model, inputs)
                probe.loss = None if loss is None else float(loss)
                probes.append(probe)
        return why_not_exact(*probes), probes[0].parameters

    def _probing_loss(self, model: nn.Module, inputs: Batch) -> torch.Tensor | None:
        """The loss of a forward of the model on a batch; None without labels."""
        if any(name in inputs for name in self.label_names):
            return cast(torch.Tensor, self.compute_loss(model, dict(inputs)))
        model(**inputs)
        return None


def _active_adapters(model: Any) -> list[str]:
    active = getattr(model, "active_adapters", [])
    return list(active() if callable(active) else active) if isinstance(model, PeftModel) else []


def first_trained_layer(backbone: Backbone) -> int | None:
    """The lowest block with a weight that is trained; None if none has."""
    for index, block in enumerate(backbone.layers):
        if any(parameter.requires_grad for parameter in block.parameters()):
            return index
    return None


def _frozen_parts(module: nn.Module, above: Collection[nn.Module]) -> Iterator[nn.Module]:
    """The modules of a model, itself included, outside of the blocks `above` and of other parts that are trained."""
    if module in above:
        return
    if any(block in above for block in module.modules()):
        yield module
        for child in module.children():
            yield from _frozen_parts(child, above)
    elif not any(parameter.requires_grad for parameter in module.parameters()):
        yield from module.modules()


def _dtype_below(backbone: Backbone, layer: int) -> torch.dtype:
    """The dtype of the states at a layer: the widest below it, where weights that are quantized do not count."""
    above = {id(parameter) for block in backbone.layers[layer:] for parameter in block.parameters()}
    below = {one.dtype for one in backbone.base_model.parameters() if id(one) not in above}
    floating = [dtype for dtype in below if dtype.is_floating_point and dtype.itemsize > 1]
    return functools.reduce(torch.promote_types, floating or [torch.float32])


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
