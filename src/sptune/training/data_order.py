"""The order of a training's batches in one process or several, and random draws despite persistent workers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler


def grouping_by_length() -> dict[str, Any]:
    """The option of `TrainingArguments` that groups texts by length; transformers 4 has another name for it."""
    if "group_by_length" in {field.name for field in dataclasses.fields(TrainingArguments)}:
        return {"group_by_length": True}
    return {"train_sampling_strategy": "group_by_length"}


def steps_of_epoch(batches: int, accumulation: int) -> int:
    """The optimizer steps of an epoch of so many batches; the last one may accumulate fewer."""
    return max(1, math.ceil(batches / accumulation))


class PersistentWorkers(TrainerCallback):
    """Gives training with persistent workers the same random draws as without."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the random draw that starting new workers would make."""
        draw_as_new_workers(kwargs.get("train_dataloader"))


def draw_as_new_workers(loader: Any) -> None:
    """Draw a number from PyTorch's random state if the loader's workers are running already.

    Every pass over a loader draws its workers' seed there, but with persistent workers only the first pass does, and
    dropout would continue from another state.
    """
    if getattr(getattr(loader, "base_dataloader", loader), "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_()


@contextlib.contextmanager
def workers_for_one_pass(args: TrainingArguments) -> Iterator[None]:
    """Without persistent workers in the data loaders made inside."""
    given, args.dataloader_persistent_workers = args.dataloader_persistent_workers, False
    try:
        yield
    finally:
        args.dataloader_persistent_workers = given


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


class ProcessBatches(BatchSampler):
    """The batches of several processes in turn; together those of a step are the batch that one process would take.

    Accelerate fills the incomplete last step of an epoch with examples that the epoch has had already. Here the
    processes share the examples that are left, as evenly as possible; only where they are fewer than the processes,
    some are repeated.

    Args:
        batch_sampler: the batches of one process.
        processes: number of processes.
    """

    def __init__(self, batch_sampler: BatchSampler, processes: int) -> None:
        super().__init__(batch_sampler.sampler, batch_sampler.batch_size, drop_last=False)
        self.processes = processes

    def __len__(self) -> int:
        return math.ceil(len(cast(Sized, self.sampler)) / (self.batch_size * self.processes)) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(self.sampler)
        while step := list(itertools.islice(order, self.batch_size * self.processes)):
            step += step[:1] * (self.processes - len(step))
            bounds = [len(step) * process // self.processes for process in range(self.processes + 1)]
            yield from (step[first:last] for first, last in itertools.pairwise(bounds))


def share_last_batch(loader: Any) -> None:
    """Let the processes share the last step of an epoch as `ProcessBatches` does.

    Args:
        loader: a training's data loader, which Accelerate has prepared; others are left as they are.
    """
    shard = getattr(loader, "batch_sampler", None)
    if not isinstance(shard, BatchSamplerShard) or shard.split_batches or type(shard.batch_sampler) is not BatchSampler:
        return
    if shard.num_processes > 1 and not shard.drop_last:
        shard.batch_sampler = ProcessBatches(shard.batch_sampler, shard.num_processes)
        shard.even_batches = False
