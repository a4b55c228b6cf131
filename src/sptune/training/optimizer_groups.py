"""Parameter groups of an optimizer with options of their own."""

from __future__ import annotations

from typing import Any

import torch


def split_groups(optimizer: torch.optim.Optimizer, special: list[tuple[set[int], dict[str, Any]]]) -> None:
    """Move parameters of a new optimizer into separate groups.

    Args:
        optimizer: its `param_groups` are changed in place; the rest of the old groups comes first.
        special: identities of parameters, and the options of their group; options that the optimizer does not have,
            such as betas in SGD, are left out.
    """
    remaining, moved = [], []
    for group in optimizer.param_groups:
        parameters = group.pop("params")
        for members, changes in special:
            taken = [parameter for parameter in parameters if id(parameter) in members]
            parameters = [parameter for parameter in parameters if id(parameter) not in members]
            if taken:
                changes = {name: value for name, value in changes.items() if name in group or name == "gates"}
                moved.append({"params": taken, **group, **changes})
        if parameters:
            remaining.append({"params": parameters, **group})
    optimizer.param_groups[:] = remaining + moved
