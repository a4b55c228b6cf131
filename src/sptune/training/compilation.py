"""Whether a trainer's model is compiled, as what runs another forward pass of it must know."""

from __future__ import annotations

from typing import cast

from accelerate.utils import DynamoBackend
from torch import nn
from transformers import Trainer


def compiles(trainer: Trainer) -> bool:
    """Whether the model is compiled: by the trainer's arguments, `accelerate launch --dynamo_backend`, or the user."""
    if trainer.args.torch_compile or trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        return True
    return any(_is_compiled(module) for module in cast(nn.Module, trainer.model).modules())


def _is_compiled(module: nn.Module) -> bool:
    """Whether a module is from `torch.compile(module)`, or had `module.compile()`, or its forward was compiled."""
    forward = vars(module).get("forward")
    return (
        hasattr(module, "_orig_mod")
        or module._compiled_call_impl is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )
