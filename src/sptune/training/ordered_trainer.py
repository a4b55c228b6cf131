"""`OrderedTrainer`: the same batches in any number of processes, after an interruption, and with persistent workers."""

from __future__ import annotations

from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput

from sptune.training.data_order import (
    EpochSampler,
    PersistentWorkers,
    draw_as_new_workers,
    share_last_batch,
    workers_for_one_pass,
)


class OrderedTrainer(Trainer):
    """A `transformers.Trainer` whose data loaders depend on data, seed and the number of examples in a step only.

    Args:
        *args: the arguments of `transformers.Trainer`.
        **kwargs: likewise.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evaluated: dict[str, Any] = {}
        self.add_callback(PersistentWorkers())

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        # Transformers 4 resumes with the checkpoint's batch size, which another number of processes had.
        if not self.args.auto_find_batch_size:
            batch_size = self.args.train_batch_size
        return super()._inner_training_loop(batch_size, *args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """As in transformers, but several processes train on the batches that one process would train on."""
        loader = super()._get_dataloader(*args, **kwargs)
        if kwargs.get("is_training"):
            share_last_batch(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in transformers, but persistent workers never give the data of another dataset."""
        own = self.eval_dataset
        if not self.args.dataloader_persistent_workers:
            return super().get_eval_dataloader(eval_dataset)
        name = eval_dataset if isinstance(eval_dataset, str) else "eval"
        asked = own if eval_dataset is None else cast(Any, own)[name] if isinstance(eval_dataset, str) else eval_dataset
        if name == "eval" and asked is not own:
            with workers_for_one_pass(self.args):
                return super().get_eval_dataloader(eval_dataset)
        if self._evaluated.get(name) is not asked:
            getattr(self, "_eval_dataloaders", {}).pop(name, None)
        self._evaluated[name] = asked
        loader = super().get_eval_dataloader(eval_dataset)
        draw_as_new_workers(loader)
        return loader

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """As in transformers, but grouping by length depends on seed and epoch only, so that runs can be resumed.

        The texts of a step are grouped as one batch, whatever the number of processes.
        """
        sampler = super()._get_train_sampler() if train_dataset is None else super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= max(self.args.world_size, 1)
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return EpochSampler(sampler, seed)
        return sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """The order of the data even if training groups by length, so that predictions match their examples."""
        sampler = super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(cast(Any, eval_dataset)) if isinstance(sampler, LengthGroupedSampler) else sampler
