"""Measures flash attention and plain attention on a CPU, forward and backward, by length.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --output attention.jsonl    # can be stopped and started again

`sptune.training.attention_kernel.LONGEST_WITHOUT_FLASH` comes from these measurements. A row is that of its machine and
versions: on another machine, rows are added to the file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from resumable_runs import Row, freeze, write_missing_rows
from speed import machine
from sptune.runs.output_folder import read_json_lines

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


def measure(name: str, dtype: torch.dtype, length: int) -> Row:
    """The seconds of both kernels at one length."""
    times = {f"{kernel}_seconds": seconds(backend, *HEADS[name], length, dtype) for kernel, backend in KERNELS.items()}
    return {**about(name, dtype, length), **times}


def about(name: str, dtype: torch.dtype, length: int) -> Row:
    """What a row is the measurement of."""
    return {"heads_of": name, "dtype": str(dtype).removeprefix("torch."), "tokens": length, "machine": machine()}


def runs() -> Iterator[tuple[str, Callable[[], Row]]]:
    """All measurements with their keys."""
    for name in HEADS:
        for dtype in (torch.bfloat16, torch.float32):
            for length in LENGTHS:
                yield freeze(about(name, dtype, length)), partial(measure, name, dtype, length)


def key_of(row: Row) -> str:
    """The key of the measurement that wrote a row."""
    return freeze({name: row[name] for name in ("heads_of", "dtype", "tokens", "machine")})


def print_table(rows: list[Row]) -> None:
    """Print the milliseconds of both kernels and their ratio."""
    table = Table("heads of", "dtype", "tokens", "flash, ms", "plain, ms", "flash / plain", box=None)
    for row in rows:
        flash, plain = row["flash_seconds"], row["plain_seconds"]
        figures = (f"{1e3 * flash:.1f}", f"{1e3 * plain:.1f}", f"{flash / plain:.2f}")
        table.add_row(row["heads_of"], row["dtype"], f"{row['tokens']}", *figures)
    Console().print(table)


def main() -> None:
    """Measure what this machine has no row of yet, and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl file")
    given = parser.parse_args()
    write_missing_rows(given.output, runs(), key_of)
    print_table([row for row in read_json_lines(given.output) if row["machine"] == machine()])


if __name__ == "__main__":
    main()
