"""`MixedPrompts`: prompts in front of the text for a batch whose rows have adapters of their own.

All rows get as many slots as the longest prompt, from the lowest prompt layer on. A row uses the slots next to its
text, from its own first prompt layer on, so its positions are those that it has alone. Slots that it does not use have
the inclusion probability 0: no token of the row attends to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.gates import at_least_float32
from sptune.modeling.stacked_generators import RowGenerator, RowGroup, group_rows


@dataclass(frozen=True)
class AdapterPrompts:
    """The prompts of an adapter.

    Attributes:
        settings: its layers and its configuration.
        generators: by layer.
    """

    settings: AdapterSettings
    generators: Mapping[int, RowGenerator]

    @property
    def num_prompts(self) -> int:
        """The number m of its prompt vectors."""
        return self.settings.config.num_virtual_tokens or 0

    def gate(self, layer: int) -> float:
        """The gate a_i; 1 in a final network."""
        alpha = self.generators[layer].gate
        return 1.0 if alpha is None else float(torch.sigmoid(at_least_float32(alpha)))

    def inclusion(self, layer: int) -> float:
        """The probability v_i that a token of the text sees the prompt at a layer."""
        below = [one for one in self.settings.layers if one <= layer]
        if not below or not self.settings.gated:
            return float(bool(below))
        absent = 1.0
        for one in below:
            absent *= 1 - self.gate(one)
        return 1 - absent

    def shares(self, layer: int) -> tuple[float, float]:
        """The weights of the propagated and of the new prompt at a layer, (1, 0) where there is no new one."""
        if layer not in self.generators:
            return 1.0, 0.0
        gate, tau = self.gate(layer), self.settings.config.mixing_rate or 1.0
        if not self.settings.gated:
            first = layer == self.settings.layers[0] and not self.settings.config.searching
            return (0.0, 1.0) if first else (1 - tau * gate, tau * gate)
        total, below = self.inclusion(layer), self.inclusion(layer - 1)
        if total == 0:
            return 0.0, 0.0
        return below * (1 - tau * gate) / total, gate * (tau * below + 1 - below) / total


@dataclass(frozen=True)
class MixedPromptLayer:
    """The prompts of all rows at one layer.

    Attributes:
        groups: the rows with new prompts, by kind of generator.
        begins: the rows whose first prompt layer this is, (batch, 1, 1) bool.
        keep: the weight of the propagated prompts, (batch, 1, 1).
        renew: the weight of the new prompts, (batch, 1, 1).
        inclusion: the probability with which each slot is seen, (batch, slots).
    """

    groups: list[RowGroup]
    begins: torch.Tensor
    keep: torch.Tensor
    renew: torch.Tensor
    inclusion: torch.Tensor


class MixedPrompts:
    """The prompts of the adapters of a batch.

    Args:
        adapters: those with prompts in front of the text, by name.
        names_of: the adapter of each row of a batch of this size.
        label: names the adapters of the rows, in caches.

    Attributes:
        num_slots: the largest m.
        first_layer: the lowest prompt layer.
    """

    def __init__(
        self, adapters: Mapping[str, AdapterPrompts], names_of: Callable[[int], list[str]], label: str
    ) -> None:
        self.adapters = adapters
        self.names_of = names_of
        self.label = label
        self.num_slots = max(one.num_prompts for one in adapters.values())
        self._layers = sorted({layer for one in adapters.values() for layer in one.settings.layers})
        self.first_layer = self._layers[0]
        self._made: dict[tuple[int, int], MixedPromptLayer] = {}

    def has_new_at(self, layer: int) -> bool:
        """Whether some row gets new prompts at a layer."""
        return layer in self._layers

    def at(self, layer: int, batch: int, device: torch.device) -> MixedPromptLayer:
        """The prompts at a layer from `first_layer` on; between prompt layers those of the one below."""
        newest = max(one for one in self._layers if one <= layer)
        if (newest, batch) not in self._made:
            self._made[newest, batch] = self._make(newest, self.names_of(batch), device)
        return self._made[newest, batch]

    def _make(self, layer: int, names: list[str], device: torch.device) -> MixedPromptLayer:
        shares = {name: one.shares(layer) for name, one in self.adapters.items()}
        begins = {name: layer == one.settings.layers[0] for name, one in self.adapters.items()}
        slots = {name: self._slots(one, layer) for name, one in self.adapters.items()}
        generators = {name: one.generators.get(layer) for name, one in self.adapters.items()}

        def rows(values: list[float] | list[bool]) -> torch.Tensor:
            return torch.tensor(values, device=device)[:, None, None]

        return MixedPromptLayer(
            groups=group_rows([generators.get(name) for name in names], device),
            begins=rows([begins.get(name, False) for name in names]),
            keep=rows([shares.get(name, (1.0, 0.0))[0] for name in names]),
            renew=rows([shares.get(name, (1.0, 0.0))[1] for name in names]),
            inclusion=torch.tensor([slots.get(name, [0.0] * self.num_slots) for name in names], device=device),
        )

    def _slots(self, adapter: AdapterPrompts, layer: int) -> list[float]:
        """The inclusion probability of each slot, the slots next to the text last."""
        unused = self.num_slots - adapter.num_prompts
        return [0.0] * unused + [adapter.inclusion(layer)] * adapter.num_prompts
