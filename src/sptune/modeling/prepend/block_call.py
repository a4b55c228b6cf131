"""`BlockCall`: the arguments of one call of a block, by name."""

from __future__ import annotations

from itertools import chain
from typing import Any

from transformers import Cache

from sptune.modeling.calls import CACHE_NAMES


class BlockCall:
    """The arguments of a block's call, read and replaced by name, and passed on as they came: by position or by name.

    Args:
        positions: the position of each named argument of the block's forward.
        args: the positional arguments.
        kwargs: the others.
    """

    def __init__(self, positions: dict[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.positions = positions
        self.args = list(args)
        self.kwargs = dict(kwargs)

    def get(self, name: str) -> Any:
        """The argument of this name, or None."""
        index = self.positions.get(name)
        if index is not None and index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name)

    __getitem__ = get

    @property
    def cache(self) -> Any:
        """The cached keys and values, or None.

        An argument that the block names comes first, then other names of caches, then any `Cache` object: if a cache
        were overlooked because an argument was renamed, later tokens would be read wrongly without an error.
        """
        named = (self.get(name) for name in sorted(CACHE_NAMES, key=lambda name: name not in self.positions))
        others = (value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Cache))
        return next((value for value in chain(named, others) if value is not None), None)

    def __setitem__(self, name: str, value: Any) -> None:
        index = self.positions.get(name)
        if index is not None and index < len(self.args):
            self.args[index] = value
        elif index == len(self.args):
            # Reentrant gradient checkpointing carries gradients through positional arguments only, and a gated mask
            # has them.
            self.kwargs.pop(name, None)
            self.args.append(value)
        else:
            self.kwargs[name] = value
