"""The most memory that this process has used."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from sptune.runs.processes import on_cpu


def peak_memory() -> int | None:
    """The most memory in use so far, in bytes: the GPU's, or the process's where there is none.

    Returns:
        None where the system does not tell.
    """
    if torch.cuda.is_available() and not on_cpu():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # Not every kernel that calls itself Linux has this line.
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(lines[0].split()[1]) * 1024 if lines else None
    if importlib.util.find_spec("resource") is None:
        return None
    resource: Any = importlib.import_module("resource")
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
