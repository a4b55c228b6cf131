"""The linear probe: the head that prompts have, trained alone on the frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from sptune.modeling.mean_pooling import MeanPooledClassifier

Batch = dict[str, torch.Tensor]


class LinearProbe(nn.Module):
    """The modules of a classifier that a run trains besides prompts, on a frozen backbone.

    The backbone is not part of this module: it keeps its weights, stays in evaluation mode (no dropout) and is not in
    checkpoints. The head of a mean-pooled classifier sees only one vector of each example, which `pool` computes once.

    Args:
        model: a sequence classifier, which must not be used elsewhere while its head is trained here.
        modules: dotted names of the modules to train.
    """

    def __init__(self, model: PreTrainedModel, modules: list[str]) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        self._whole: list[Any] = [model]  # a list, so that the backbone is not registered
        self.trained = nn.ModuleList(model.get_submodule(name) for name in modules)
        self.trained.requires_grad_(True)
        self._untouched = {name: value.clone() for name, value in self.trained.state_dict().items()}

    def restore(self) -> None:
        """Restore the classifier: its head untrained, everything frozen."""
        self.trained.load_state_dict(self._untouched)
        self.trained.requires_grad_(False)

    @property
    def pools_once(self) -> bool:
        """Whether data must go through `pool` before training."""
        return isinstance(self._whole[0], MeanPooledClassifier)

    def train(self, mode: bool = True) -> LinearProbe:
        """Keep dropout off: the pooled vectors are computed without it, too."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, pooled: torch.Tensor | None = None, **batch: torch.Tensor) -> torch.Tensor:
        """Class logits (batch, classes), from pooled vectors (batch, hidden) or from tokens."""
        if pooled is not None:
            return self.trained[0](pooled)
        model = self._whole[0].to(next(self.parameters()).device)
        return model(**batch).logits

    def pool(
        self, dataset: Dataset, collator: Callable[[list[dict[str, Any]]], Batch], batch_size: int, device: torch.device
    ) -> Dataset:
        """The dataset with one vector for each example, in the column `pooled`, and its label.

        Texts of like length share a batch, which needs little padding. Each process runs the backbone on its share of
        the batches, and all get the vectors of all.
        """
        model, state = self._whole[0].to(device), PartialState()
        by_length = np.argsort([len(tokens) for tokens in dataset["input_ids"]], kind="stable").tolist()
        starts = range(0, len(dataset), batch_size)[state.process_index :: state.num_processes]
        batches = [by_length[start : start + batch_size] for start in starts]
        pooled = []
        for rows, batch in zip(batches, DataLoader(dataset, batch_sampler=batches, collate_fn=collator), strict=True):
            labels = batch.pop("labels")
            with torch.no_grad():
                vectors = model.pool(**{name: value.to(device) for name, value in batch.items()}).float().cpu()
            pooled.append((rows, vectors, labels))
        pooled = gather_object(pooled)
        in_order = np.argsort([row for rows, _, _ in pooled for row in rows])
        columns = {
            "pooled": torch.cat([vectors for _, vectors, _ in pooled]).numpy()[in_order],
            "labels": torch.cat([labels for _, _, labels in pooled]).numpy()[in_order],
        }
        return Dataset.from_dict(columns).with_format("torch")


def probe_scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Class scores of a `LinearProbe`, for a trainer."""
    return model(**{name: value for name, value in batch.items() if name != "labels"})
