"""Pads encoded examples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PaddingCollator:
    """Pads encoded examples to the longest one and stacks them to a batch.

    Attributes:
        pad_token_id: the token id of padding.
        left: whether to pad on the left.
    """

    pad_token_id: int
    left: bool

    def __call__(self, features: Sequence[dict[str, Any]]) -> Batch:
        """Make a batch.

        Args:
            features: rows that `TaskEncoder.encode` returns.

        Returns:
            `input_ids`, `attention_mask` and, if given, `token_type_ids`, (batch, length); `labels`: class
            indices or numbers (batch,), or 0 and 1 for each label, (batch, labels).
        """
        lengths = [len(feature["input_ids"]) for feature in features]
        longest = max(lengths)
        batch = {}
        for name, fill in (("input_ids", self.pad_token_id), ("attention_mask", 0), ("token_type_ids", 0)):
            if name in features[0]:
                rows = torch.full((len(features), longest), fill, dtype=torch.long)
                for row, feature, length in zip(rows, features, lengths, strict=True):
                    row[longest - length if self.left else 0 :][:length] = torch.as_tensor(feature[name])
                batch[name] = rows
        if "labels" in features[0]:
            labels = torch.stack([torch.as_tensor(feature["labels"]) for feature in features])
            batch["labels"] = labels.float() if labels.is_floating_point() else labels.long()
        return batch


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token of the tokenizer, else its end token, so that no embedding has to be added."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0
