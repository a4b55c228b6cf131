"""The kernel of PyTorch's attention that is fastest for a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer

from sptune.training.compilation import compiles

# In tokens; see benchmarks/attention.py.
LONGEST_WITHOUT_FLASH = 128


def fast_attention(trainer: Trainer, inputs: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """For forward and backward on these inputs, the attention kernel that is fast.

    On a CPU the backward pass of flash attention is slow in bfloat16 while sequences are short. A compiled graph would
    keep the kernel of its first batch, so PyTorch chooses there.

    Args:
        trainer: of the model.
        inputs: the batch.
    """
    args = trainer.args
    in_bfloat16 = args.bf16 or getattr(trainer.model, "dtype", None) == torch.bfloat16
    if args.device.type != "cpu" or not in_bfloat16 or compiles(trainer):
        return contextlib.nullcontext()
    tokens = inputs.get("input_ids")
    if tokens is None or tokens.shape[-1] > LONGEST_WITHOUT_FLASH:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
