"""`StateReader`: forwards in which the blocks below a layer run only if their result is not known.

It does not depend on prompts: the states below the first layer with a trained weight are the same in every epoch,
whatever is trained above (prompts, LoRA, the blocks themselves).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sptune.modeling.backbones import unwrapped
from sptune.modeling.calls import CACHE_NAMES, WrappedMethod, argument_positions
from sptune.modeling.forward_context import ThreadState
from sptune.training.caching.state_sources import StateSource

# Inputs that the states follow from, or that do not change them.
KNOWN_TENSORS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")


@dataclass
class _Reading:
    """The current forward: the source of its states, and those of layer `source.layer` if they are known."""

    source: StateSource
    states: torch.Tensor | None


class _Forward(ThreadState):
    source: StateSource | None = None
    reading: _Reading | None = None


class StateReader:
    """Wraps a base model and its blocks so that they read the states below a layer from a `StateSource`.

    Args:
        base_model: whose forward runs the blocks.
        layers: the blocks.
        applies: asked before each forward, whether it computes the same states below the layer as the others.
    """

    def __init__(
        self, base_model: nn.Module, layers: nn.ModuleList, applies: Callable[[], bool] = lambda: True
    ) -> None:
        self.base_model = base_model
        self.applies = applies
        self.forward = _Forward()
        # How many values a block returns in a tuple, or 0 for a tensor; None before one has run.
        self._outputs: int | None = None
        # Blocks that PEFT methods wrap have the arguments of the block inside.
        self._names = [next(iter(argument_positions(unwrapped(block).forward))) for block in layers]
        self._wrapped = [WrappedMethod(base_model, "forward", self._run_model)]
        for index, block in enumerate(layers):
            self._wrapped.append(WrappedMethod(block, "forward", functools.partial(self._run_block, index)))

    def remove(self) -> None:
        """Restore the methods of the modules."""
        for method in reversed(self._wrapped):
            method.remove()

    @contextlib.contextmanager
    def reading(self, source: StateSource) -> Iterator[None]:
        """In the forwards inside, read the states at layer `source.layer` from a source, or record them there."""
        outer, self.forward.source = self.forward.source, source
        try:
            yield
        finally:
            self.forward.source = outer

    def _run_model(self, forward: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        source, inputs = self.forward.source, forward.arguments(args, kwargs)
        if source is None or not self.applies() or not self._states_follow_from_tokens(inputs):
            return forward.method(*args, **kwargs)
        known = source.read(inputs["input_ids"], inputs.get("attention_mask"), inputs.get("token_type_ids"))
        if known is not None and self._outputs is None:
            known = None  # the form of a block's output is not known yet
        if known is not None and "use_cache" in forward.positions:
            kwargs["use_cache"] = False  # the layers below would be missing in it
        outer, self.forward.reading = self.forward.reading, _Reading(source, known)
        try:
            return forward.method(*args, **kwargs)
        finally:
            self.forward.reading = outer

    def _run_block(self, index: int, forward: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        reading = self.forward.reading
        if reading is None or index > reading.source.layer:
            return forward.method(*args, **kwargs)
        name = self._names[index]
        given = args[0] if args else kwargs[name]
        if reading.states is None:
            if index == reading.source.layer:
                reading.source.record(given)
            output = forward.method(*args, **kwargs)
            self._outputs = len(output) if isinstance(output, tuple) else 0
            return output
        # Reentrant gradient checkpointing drops the gradients of a block none of whose inputs requires one.
        states = reading.states.to(given.dtype).detach().requires_grad_(given.requires_grad)
        if index == reading.source.layer:
            # Gradient checkpointing runs the block a second time with the arguments that the model passes, which are
            # these states already, from the block below; here they replace the result of what lies between the
            # blocks (DeBERTa's convolution).
            return forward.method(states, *args[1:], **kwargs) if args else forward.method(**{**kwargs, name: states})
        result = states if index == reading.source.layer - 1 else given
        return (result, *[None] * (self._outputs - 1)) if self._outputs else result

    def _states_follow_from_tokens(self, inputs: dict[str, Any]) -> bool:
        """Whether each row's states follow from its text alone, and no outputs of single layers are requested.

        The text must begin at position 0, or positions must be relative, so that padding has not moved it.
        """
        if inputs.get("input_ids") is None:
            return False
        # For example the boxes of a layout, which are not compared when states are looked up.
        others = (value for name, value in inputs.items() if name not in KNOWN_TENSORS)
        if any(isinstance(value, torch.Tensor) and value.dim() > 1 for value in others):
            return False
        config: Any = self.base_model.config
        for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
            wanted = inputs.get(name)
            if getattr(config, name, False) if wanted is None else wanted:
                return False
        if any(inputs.get(name) is not None for name in (*CACHE_NAMES, "encoder_hidden_states")):
            return False
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if mask is not None and not (isinstance(mask, torch.Tensor) and mask.dim() == 2):
            return False
        if positions is not None:
            number = torch.arange(positions.shape[-1], device=positions.device)[None]
            if mask is None:
                return bool((positions == number).all())
            real = mask.to(positions.device, torch.bool)
            return bool(((positions == real.cumsum(-1) - 1) | ~real).all())
        rotary = getattr(self.base_model, "rotary_emb", None) is not None
        return rotary or mask is None or bool(mask[:, 0].all())
