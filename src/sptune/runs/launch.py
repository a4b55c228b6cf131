"""How a run was started: by one process or by several, which share its batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from accelerate.utils import parse_flag_from_env

from sptune.errors import InputError
from sptune.runs.processes import on_cpu, processes

# What launchers tell each process about their number: torchrun, and those of MPI.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# What shards a model over the processes, as accelerate launch announces it.
SHARDERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
# The record of a run's number of processes in its config.yaml; runs of earlier versions have none.
PROCESSES = "processes"


def check_launch() -> None:
    """Refuse a launcher that does not do what it was asked for.

    Raises:
        InputError: several processes were wanted and `accelerate launch --cpu` started one (it sets an address for
            processes that it does not start), or the model was to be sharded over CPUs.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ and not _has_size():
        raise InputError(
            "accelerate launch --cpu was asked for several processes, but without MPI it starts only one. Start them "
            "with: torchrun --nproc-per-node N -m sptune ..."
        )
    if (sharder := _sharder()) and on_cpu():
        raise InputError(
            f"{sharder} shards models over GPUs. On CPUs Accelerate ignores it, and each process would hold the whole "
            "model; leave it out, or run on GPUs."
        )


def check_search_launch() -> None:
    """Refuse to train a supernet that is sharded.

    Raises:
        InputError: the run was started with FSDP or DeepSpeed.
    """
    if sharder := _sharder():
        raise InputError(
            f"The search does not work with {sharder}, which hides gradients. Search with plain data parallelism "
            f"(accelerate launch --multi_gpu), or train at given layers with {sharder} (sptune train --prompt-layers)."
        )


def check_one_process(verb: str) -> None:
    """Refuse to do in several processes what each of them would do as a whole.

    Args:
        verb: the command.

    Raises:
        InputError: there are several processes.
    """
    check_launch()
    if processes().num_processes > 1:
        raise InputError(f"{verb} runs in one process: call it without accelerate launch or torchrun.")


def with_batches_shared(begun: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, with the batch size with which the processes of now go on with the same steps.

    Args:
        begun: the content of the run's config.yaml.

    Raises:
        InputError: the processes of now cannot share a step's examples equally.
    """
    before, size, now = begun.get(PROCESSES, 1), begun.get("batch_size"), processes().num_processes
    if not isinstance(before, int) or not isinstance(size, int) or before == now:
        return dict(begun)
    if before * size % now:
        raise InputError(
            f"The run was begun with a batch_size of {size} for each of its processes ({before}), and {now} processes "
            f"cannot share {before * size} examples equally; resume it with {before}, or with another number of "
            f"processes that divides {before * size}."
        )
    return {**begun, "batch_size": before * size // now}


def _sharder() -> str | None:
    """What shards the model over the processes, if anything does."""
    return next((name for variable, name in SHARDERS.items() if parse_flag_from_env(variable)), None)


def _has_size() -> bool:
    return any(name in os.environ for name in SIZES)
