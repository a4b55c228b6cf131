"""The processes that share a run, and what the device of this one can do."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    """Whether this run computes on the CPU: there is nothing better, or `accelerate launch --cpu` says so."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def processes() -> PartialState:
    """The processes that share this run, and the device of this one."""
    return PartialState(cpu=on_cpu())


def leave_processes() -> None:
    """Shut down the process group of this run: without this, PyTorch sometimes aborts a process at its end."""
    processes().destroy_process_group()


def has_bfloat16_kernels() -> bool:
    """Whether PyTorch computes fast in bfloat16 here: on a GPU, or on a CPU that it has kernels of its own for."""
    return not on_cpu() or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
