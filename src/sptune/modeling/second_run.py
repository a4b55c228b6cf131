"""The context of a block that gradient checkpointing runs a second time, in the backward pass.

Models whose forward calls `checkpoint(block, hidden_states)` run the whole `SPTLayer` again, when the contexts of the
forward (`gating`, `prompting_at`) have ended. So the context is kept with the storage of the block's input, which
checkpointing keeps for the second run. In transformers' own blocks, checkpointing lies inside of `SPTLayer`.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from sptune.errors import InputError
from sptune.modeling.forward_context import ForwardContext

_KEPT = "_spt_first_runs"


@dataclass
class FirstRun:
    """The run of a block in a forward.

    Attributes:
        values: what replaced the adapters' own, from `ForwardContext.values`.
        may_be_repeated: whether a backward pass may still run the block again.
        ambiguous: whether the block ran on the same states in another context before the backward pass.
    """

    values: dict[str, Any]
    may_be_repeated: bool
    ambiguous: bool = False


def in_backward() -> bool:
    """Whether a backward pass of this thread is under way."""
    return torch._C._current_graph_task_id() != -1


def keep_context(context: ForwardContext, states: torch.Tensor) -> None:
    """Keep the context for a second run on these states, (batch, ..., d)."""
    run = FirstRun(context.values(), may_be_repeated=torch.is_grad_enabled() or states.requires_grad)
    with contextlib.suppress(NotImplementedError):  # tensors inside of torch.func have no storage
        storage = states.untyped_storage()
        if not hasattr(storage, _KEPT):
            setattr(storage, _KEPT, {})
        runs: dict[Any, FirstRun] = getattr(storage, _KEPT)
        earlier = runs.get(_part_of_storage(states))
        if earlier is None or not earlier.may_be_repeated:
            runs[_part_of_storage(states)] = run
        elif run.may_be_repeated and not _is_same(run.values, earlier.values):
            earlier.ambiguous = True


def context_of_first_run(context: ForwardContext, states: torch.Tensor, index: int) -> AbstractContextManager[None]:
    """The context in which a block ran on these states, (batch, ..., d).

    Of several blocks that were checkpointed together, only the first one's states are kept; the others follow it.

    Args:
        context: that of the model.
        states: what the block gets now.
        index: the layer index of the block, for messages.

    Raises:
        InputError: it is not known, or there are several.
    """
    task = torch._C._current_graph_task_id()
    run = getattr(states.untyped_storage(), _KEPT, {}).get(_part_of_storage(states))
    if run is not None and run.ambiguous:
        raise InputError(
            f"Gradient checkpointing runs block {index} again, whose input was used by several forwards with other "
            "gates, layers or adapters, so those of this run are not known; give each forward a copy of the input, "
            "such as inputs.clone()."
        )
    values = None
    if run is not None:
        run.may_be_repeated = False
        values = run.values
    elif context.second_run is not None and context.second_run[0] == task:
        values = context.second_run[1]
    if values is None:
        raise InputError(
            f"Gradient checkpointing runs block {index} again, and the gates or layers of its first run are not known; "
            "checkpoint the blocks one by one, such as checkpoint(block, hidden_states)."
        )
    context.second_run = task, values
    return context.having(**values)


def _part_of_storage(states: torch.Tensor) -> tuple[Any, ...]:
    """Which part of their storage states are; slices of one tensor share a storage."""
    return states.storage_offset(), tuple(states.shape), states.stride()


def _is_same(values: dict[str, Any], others: dict[str, Any]) -> bool:
    # Gates are compared by identity: equal ones may get their gradients from different tensors.
    return values["adapters"] == others["adapters"] and all(
        values[name] is others[name] for name in ("gate_values", "mixed_batch")
    )
