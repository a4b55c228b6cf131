"""What is known during one forward pass, kept for each thread by itself.

Blocks see hidden states and a mask that has long lost the padding of each example. What was passed to the model is
kept here while its forward runs. Models are served from thread pools: no forward may see what another one was passed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from sptune.config import SPTConfig


@dataclass(frozen=True)
class AdapterSettings:
    """What the blocks need to know of one adapter.

    Attributes:
        layers: the layers with a generator, ascending.
        config: the adapter's configuration.
    """

    layers: tuple[int, ...]
    config: SPTConfig

    @property
    def gated(self) -> bool:
        """Whether attention weighs the slots by their presence."""
        return self.config.searching and self.config.visibility == "gated"


@dataclass
class ForwardState:
    """One forward of the base model. `inputs` are its arguments by name; the rest is filled in by the blocks."""

    inputs: dict[str, Any] = field(default_factory=dict)
    checked: bool = False
    presence: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None
    extended: dict[Any, Any] = field(default_factory=dict)


class ThreadState(threading.local):
    """A `threading.local` that models holding it can be copied and pickled with; the copy starts empty.

    Not a `contextvars.ContextVar`, which torch.compile cannot trace. A forward never waits for another task of its
    thread, so threads are the only contexts it can share the model with.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> ThreadState:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()


class ForwardContext(ThreadState):
    """What holds in the forwards of one model in this thread.

    Attributes:
        call: arguments of a call of the model that has not come to its forward yet, by name.
        model_inputs: arguments of the model's forward under way, `source_mask` included; None outside one.
        state: the base model's forward under way; None outside one.
        generating: the text given to the `generate` under way, (batch, length) or its embeddings.
        gate_values: gates that replace the adapter's own, (batch or 1, candidates).
        adapters: settings that replace those of adapters, by name.
    """

    def __init__(self) -> None:
        self.call: dict[str, Any] | None = None
        self.model_inputs: dict[str, Any] | None = None
        self.state: ForwardState | None = None
        self.generating: torch.Tensor | None = None
        self.gate_values: torch.Tensor | None = None
        self.adapters: dict[str, AdapterSettings] = {}

    @contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """In the forwards inside, the attributes named have these values."""
        outer = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name, value in outer.items():
                setattr(self, name, value)
