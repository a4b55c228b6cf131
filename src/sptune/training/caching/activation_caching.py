"""`ActivationCaching`: fills an `ActivationCache` during training and gives its states to the network.

`SPTTrainer` of sptune has one, and so has `ActivationCachingTrainer` for any PEFT method.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pyarrow as pa
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from sptune.errors import InputError
from sptune.modeling.backbones import REFUSED_ROPE_TYPES, Backbone, find_backbone, rope_type
from sptune.modeling.model import SPTModel
from sptune.training.caching.acting_adapters import ActingAdapters
from sptune.training.caching.activation_cache import ActivationCache, cache_folders
from sptune.training.caching.cache_fingerprint import fingerprint
from sptune.training.caching.cache_plan import GIB, ActivationCachePlan
from sptune.training.caching.cache_settings import ActivationCacheSettings
from sptune.training.caching.exactness_probe import probe_reading
from sptune.training.caching.frozen_layers import dtype_below, first_trained_layer, without_dropout_below
from sptune.training.caching.state_reader import StateReader
from sptune.training.caching.state_sources import CachedTexts
from sptune.training.caching.token_table import TokenTable
from sptune.training.compilation import compiles
from sptune.whole_files import expanded

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class ActivationCaching:
    """Caches the states at the first trained layer while a trainer trains.

    The trainer runs its training inside `training`, and each batch inside `reading`.

    Args:
        trainer: the trainer.
        settings: how the states are kept; None to compute them in every epoch.
        loss_of: the loss of a forward of the model on a batch, or None without labels, by which a trial finds out
            whether the cache is exact; None for `loss_with_labels`.

    Attributes:
        datasets: the trainer's attributes that hold datasets which are passed more than once.
    """

    def __init__(
        self,
        trainer: Trainer,
        settings: ActivationCacheSettings | None,
        loss_of: Callable[[nn.Module, Batch], torch.Tensor | None] | None = None,
    ) -> None:
        self.trainer = trainer
        self.settings = settings
        self.loss_of = self.loss_with_labels if loss_of is None else loss_of
        self.datasets: tuple[str, ...] = ("train_dataset", "eval_dataset")
        self._cache: ActivationCache | None = None
        self._reader: StateReader | None = None
        self._below: list[nn.Parameter] | None = None

    def plan(self) -> ActivationCachePlan:
        """Whether training will use the cache, and how large it may grow."""
        return self._plan_with_tokens()[0]

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """For the training inside, turn dropout off below the first trained layer, and cache where that is exact."""
        backbone = self._find_backbone()
        layer = None if backbone is None else first_trained_layer(backbone)
        with contextlib.ExitStack() as stack:
            if backbone is not None and layer:
                stack.enter_context(without_dropout_below(backbone, layer))
            stack.enter_context(self._caching())
            yield

    @contextlib.contextmanager
    def reading(self, inputs: Batch, *, check: bool = False) -> Iterator[None]:
        """The forwards inside on this batch read the states below the trained layers.

        Args:
            inputs: the batch.
            check: whether to make sure first that the states are exact. Before the first check nothing is read.
        """
        cache, reader = self._cache, self._reader
        if cache is None or reader is None or cache.given_up or not isinstance(inputs, Mapping):
            yield
            return
        if check:
            self._check(cache, inputs)
        if cache.given_up or self._below is None:
            yield
            return
        with reader.reading(CachedTexts(cache)):
            yield

    def loss_with_labels(self, model: nn.Module, inputs: Batch) -> torch.Tensor | None:
        """The trainer's loss of a forward of the model on a batch; None without labels."""
        if any(name in inputs for name in self.trainer.label_names):
            return cast(torch.Tensor, self.trainer.compute_loss(model, dict(inputs)))
        model(**inputs)
        return None

    def _plan_with_tokens(self) -> tuple[ActivationCachePlan, TokenTable | None]:
        settings, args, backbone = self.settings, self.trainer.args, self._find_backbone()
        layer = None if backbone is None else first_trained_layer(backbone)
        reason = self._why_not(backbone, layer)
        if reason is not None or settings is None or backbone is None or layer is None:
            return ActivationCachePlan(reason=reason), None
        try:
            tokens = TokenTable.of(_tables(getattr(self.trainer, name) for name in self.datasets))
        except (KeyError, TypeError, AttributeError, pa.ArrowException):
            return ActivationCachePlan(reason="the examples are not dictionaries with input_ids"), None
        dtype = dtype_below(backbone, layer) if settings.dtype is None else getattr(torch, settings.dtype)
        size = len(tokens.tokens) * backbone.hidden_size * dtype.itemsize
        # With several processes an example may be another process's in the next epoch, so they share a file.
        in_memory = size <= settings.memory * GIB and args.world_size == 1
        folder = None if in_memory else expanded(settings.folder or args.output_dir or ".")
        return ActivationCachePlan(layer, backbone.hidden_size, dtype, size, folder), tokens

    def _why_not(self, backbone: Backbone | None, layer: int | None) -> str | None:
        """Why training will not use the cache, as far as it follows from settings, model and arguments."""
        trainer, args = self.trainer, self.trainer.args
        if self.settings is None:
            return "it is turned off"
        if backbone is None:
            return "the model has no single list of blocks that take hidden states"
        if layer is None:
            return "nothing is trained in the blocks"
        if layer == 0:
            return "layer 0 is trained, so nothing lies below"
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.n_gpu > 1:
            return "it does not work with DeepSpeed, FSDP and DataParallel"
        if compiles(trainer):
            return "it would break torch.compile's graph"
        if getattr(args, "neftune_noise_alpha", None) is not None:
            return "neftune_noise_alpha adds noise to the embeddings"
        if rope_type(getattr(backbone.base_model, "config", None)) in REFUSED_ROPE_TYPES:
            return "rotary positions change with the length of the batch"
        if not _is_table(trainer.train_dataset):
            return "the training data have no length and index"
        return None

    def _find_backbone(self) -> Backbone | None:
        model: Any = self.trainer.model
        tuner = getattr(model, "base_model", None)
        if isinstance(tuner, SPTModel):
            return tuner.backbone
        try:
            return find_backbone(model.get_base_model() if isinstance(model, PeftModel) else model)
        except InputError:
            return None

    @contextlib.contextmanager
    def _caching(self) -> Iterator[None]:
        """For the training inside, open a cache of its examples."""
        plan, tokens = self._plan_with_tokens()
        backbone = self._find_backbone()
        cache = None if tokens is None or backbone is None else self._open(plan, tokens, backbone)
        if cache is None or backbone is None:
            if plan.reason is not None:
                logger.info("%s", plan)
            yield
            return
        logger.info("%s", plan)
        self._cache, self._below, finished = cache, None, False
        # Other adapters might act below the cached layer.
        adapters = ActingAdapters(cast(nn.Module, self.trainer.model))
        self._reader = StateReader(backbone.base_model, backbone.layers, adapters.are_the_first)
        try:
            yield
            finished = True
        finally:
            self._reader.remove()
            self._cache = self._reader = None
            cache.close(remove=finished and self.settings is not None and not self.settings.keep)

    def _open(self, plan: ActivationCachePlan, tokens: TokenTable, backbone: Backbone) -> ActivationCache | None:
        """The cache, or None in every process if one of them cannot have it."""
        settings, args = self.settings, self.trainer.args
        cache, key = None, ""
        if plan.folder is not None:
            precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
            key = fingerprint(backbone.base_model, plan.layer, tokens, backbone.layers, precision)
        # An error must not leave this context: the other processes wait for its end.
        with self.trainer.accelerator.main_process_first():
            try:
                if plan.folder is not None and settings is not None and settings.folder is None:
                    for stale in cache_folders(plan.folder, but=key):
                        shutil.rmtree(stale, ignore_errors=True)
                cache = ActivationCache(plan.layer, tokens, plan.hidden_size, plan.dtype, plan.folder, key)
            except OSError as error:
                logger.warning(
                    "There is no room for the activation cache (%s); training goes on without it. Free space, choose "
                    "another folder, or store it in a shorter dtype.",
                    error,
                )
        opened = torch.tensor(float(cache is not None), device=args.device)
        if bool(self.trainer.accelerator.gather(opened).min() > 0):
            return cache
        if cache is not None:
            cache.close(remove=False)
        return None

    def _check(self, cache: ActivationCache, inputs: Batch) -> None:
        """Give the cache up if something below it is trained, or if reading states changes the results."""
        reason = None
        if self._below is None:
            cast(nn.Module, self.trainer.model).train()  # an evaluation before the first step leaves evaluation mode
            reason, self._below = self._probe(cache.layer, cast(Any, self.trainer._prepare_inputs(inputs)))
        if any(parameter.requires_grad for parameter in self._below):
            reason = "something below it is trained"
        if reason is not None:
            logger.warning("The activation cache at layer %d is not used: %s.", cache.layer, reason)
            cache.give_up()

    def _probe(self, layer: int, inputs: Batch) -> tuple[str | None, list[nn.Parameter]]:
        """Why states read at a layer would not be exact, or None; and the parameters used below it."""
        model, backbone, reader = cast(nn.Module, self.trainer.model), self._find_backbone(), self._reader
        assert backbone is not None
        assert reader is not None
        with self.trainer.compute_loss_context_manager():
            return probe_reading(reader, layer, model, backbone.layers, lambda: self.loss_of(model, inputs))


def _is_table(dataset: Any) -> bool:
    return not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")


def _tables(datasets: Iterable[Any]) -> list[Any]:
    """The tables with examples among datasets and dictionaries of them, in order."""
    flat = [one for dataset in datasets for one in (dataset.values() if isinstance(dataset, dict) else [dataset])]
    return [one for one in flat if _is_table(one) and len(one)]
