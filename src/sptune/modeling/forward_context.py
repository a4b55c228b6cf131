"""State of one forward pass, kept for each thread: gates, layers and adapters that replace the configured ones.

Models are served from thread pools: no forward may see what another one was passed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sptune.config import SPTConfig

if TYPE_CHECKING:
    from sptune.modeling.mixed_batch import MixedBatch


@dataclass(frozen=True)
class AdapterSettings:
    """What the layers need to know of one adapter.

    Attributes:
        layers: the layers with a generator, ascending.
        config: the adapter's configuration.
    """

    layers: tuple[int, ...]
    config: SPTConfig

    @property
    def gated(self) -> bool:
        """Whether attention to prompt tokens is scaled by their inclusion probability."""
        return self.config.searching and self.config.visibility == "gated"


class ThreadState(threading.local):
    """A `threading.local` that models holding it can be copied and pickled with; the copy starts empty.

    Not a `contextvars.ContextVar`, which torch.compile cannot trace. A forward never waits for another task of its
    thread, so threads are the only contexts it can share the model with.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> ThreadState:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()

    @contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """Inside, the attributes named have these values in this thread."""
        outer = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name, value in outer.items():
                setattr(self, name, value)


class ForwardContext(ThreadState):
    """What replaces the adapters' own gates and layers in the forwards of one model in this thread.

    Attributes:
        gate_values: gates that replace the adapter's own, (batch or 1, candidates); None for its own.
        adapters: settings that replace those of adapters, by name.
        mixed_batch: the adapters of the rows of the batch, which replace the active one; None for that one.
        second_run: the last backward pass in which checkpointing ran a block again, and the values then.
    """

    def __init__(self) -> None:
        self.gate_values: torch.Tensor | None = None
        self.adapters: dict[str, AdapterSettings] = {}
        self.mixed_batch: MixedBatch | None = None
        self.second_run: tuple[int, dict[str, Any]] | None = None

    @property
    def is_replacing(self) -> bool:
        """Whether something replaces the adapters' own now."""
        return self.gate_values is not None or bool(self.adapters) or self.mixed_batch is not None

    def values(self) -> dict[str, Any]:
        """What replaces the adapters' own now, for `having`."""
        return {"gate_values": self.gate_values, "adapters": self.adapters, "mixed_batch": self.mixed_batch}
