"""Measures flash attention and plain attention on a CPU, forward and backward, by length.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

`sptune.training.attention_kernel.LONGEST_WITHOUT_FLASH` comes from these measurements.
"""

from __future__ import annotations

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BATCH, REPEATS = 16, 9
HEADS = {"MiniLM-L6": (12, 32), "SmolLM2-135M": (9, 64)}
LENGTHS = (16, 32, 64, 128, 256, 512)
KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def seconds(kernel: SDPBackend, heads: int, width: int, length: int, dtype: torch.dtype) -> float:
    """The median time of a forward and backward pass."""
    states = [torch.randn(BATCH, heads, length, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(BATCH, 1, length, length, dtype=dtype)
    times = []
    with sdpa_kernel(kernel):
        for _ in range(REPEATS):
            begun = time.perf_counter()
            scaled_dot_product_attention(*states, attn_mask=mask).sum().backward()
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Print the milliseconds of both kernels and their ratio."""
    table = Table("heads of", "format", "tokens", "flash, ms", "plain, ms", "flash / plain", box=None)
    for name, (heads, width) in HEADS.items():
        for dtype in (torch.bfloat16, torch.float32):
            for length in LENGTHS:
                flash, plain = (seconds(kernel, heads, width, length, dtype) for kernel in KERNELS.values())
                form = str(dtype).removeprefix("torch.")
                ratio = f"{flash / plain:.2f}"
                table.add_row(name, form, f"{length}", f"{1e3 * flash:.1f}", f"{1e3 * plain:.1f}", ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
