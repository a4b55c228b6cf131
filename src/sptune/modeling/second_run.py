"""The context of a block that gradient checkpointing runs a second time, in the backward pass.

Models whose forward calls `checkpoint(block, hidden_states)` run the whole `SPTLayer` again, when the contexts of the
forward (`gating`, `prompting_at`) have ended. So the context is kept with the storage of the block's input, which
checkpointing keeps for the second run. In transformers' own blocks, checkpointing lies inside of `SPTLayer`.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from sptune.errors import InputError
from sptune.modeling.forward_context import ForwardContext

_KEPT = "_spt_context"


def in_backward() -> bool:
    """Whether a backward pass of this thread is under way."""
    return torch._C._current_graph_task_id() != -1


def keep_context(context: ForwardContext, states: torch.Tensor) -> None:
    """Keep the context for a second run on these states, (batch, ..., d)."""
    with contextlib.suppress(NotImplementedError):  # tensors inside of torch.func have no storage
        setattr(states.untyped_storage(), _KEPT, context.values())


def context_of_first_run(context: ForwardContext, states: torch.Tensor, index: int) -> AbstractContextManager[None]:
    """The context in which a block ran on these states, (batch, ..., d).

    Of several blocks that were checkpointed together, only the first one's states are kept; the others follow it.

    Args:
        context: that of the model.
        states: what the block gets now.
        index: the layer index of the block, for messages.

    Raises:
        InputError: it is not known.
    """
    task = torch._C._current_graph_task_id()
    values = getattr(states.untyped_storage(), _KEPT, None)
    if values is None and context.second_run is not None and context.second_run[0] == task:
        values = context.second_run[1]
    if values is None:
        raise InputError(
            f"Gradient checkpointing runs block {index} again, and the gates or layers of its first run are not known; "
            "checkpoint the blocks one by one, such as checkpoint(block, hidden_states)."
        )
    context.second_run = task, values
    return context.having(**values)
