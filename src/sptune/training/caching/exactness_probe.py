"""`StateProbe`: a trial on one batch of whether states that are read give the same results as computed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sptune.training.caching.state_reader import StateReader


class _Operands(TorchFunctionMode):
    """Shows the parameters that functions of PyTorch are called with.

    Some belong to modules that are never called: a `ParameterDict` of PEFT, or DeBERTa's relative positions.

    Args:
        show: called with the parameters of each call.
    """

    def __init__(self, show: Callable[[list[nn.Parameter]], None]) -> None:
        super().__init__()
        self.show = show

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.show([value for value in tree_leaves((args, kwargs)) if isinstance(value, nn.Parameter)])
        return func(*args, **(kwargs or {}))


class StateProbe:
    """A `StateSource` that records one forward at a layer, to find out whether reading states there is exact.

    Args:
        layer: where the cached states would be read.
        model: the trained model.
        blocks: its blocks.
        known: the states to give to the forward; None to compute them.

    Attributes:
        states: (batch, length, d), those of the forward at the layer.
        final: (batch, length, d), the output of the last block.
        loss: the loss of the forward, if there is one.
        mask: (batch, length), true at real tokens; None if all are.
        parameters: those used below the layer.
    """

    def __init__(self, layer: int, model: nn.Module, blocks: nn.ModuleList, known: torch.Tensor | None = None) -> None:
        self.layer = layer
        self.model = model
        self.blocks = blocks
        self.known = known
        self.states: torch.Tensor | None = None
        self.final: torch.Tensor | None = None
        self.loss: float | None = None
        self.mask: torch.Tensor | None = None
        self.parameters: list[nn.Parameter] = []

    def __enter__(self) -> StateProbe:
        self._handles = [module.register_forward_pre_hook(self._note) for module in self.model.modules()]
        self._handles.append(self.blocks[-1].register_forward_hook(self._keep))
        self._operands = _Operands(self._use)
        self._operands.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._operands.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._use(module.parameters(recurse=False))

    def _use(self, parameters: Iterable[nn.Parameter]) -> None:
        if self.states is None:
            self.parameters += parameters

    def _keep(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.final = (output[0] if isinstance(output, tuple) else output).detach()

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The known states, with arbitrary values at padding, as a cache gives them."""
        self.mask = None if attention_mask is None else attention_mask.bool()
        if self.known is None or self.mask is None:
            return self.known
        return torch.where(self.mask[..., None], self.known, self.known.flip(0, 1))

    def record(self, states: torch.Tensor) -> None:
        """Keep the states, unless the model has lengthened them."""
        if self.mask is None or states.shape[:2] == self.mask.shape:
            self.states = states.detach().clone()


def why_not_exact(first: StateProbe, second: StateProbe, reading: StateProbe) -> str | None:
    """Why three forwards over one batch do not allow a cache, or None if they do.

    Args:
        first: computed everything.
        second: computed everything, with another seed.
        reading: was given the states of `second`, and ran with its seed.
    """
    if first.states is None or second.states is None:
        return "states below it do not follow from the tokens alone, or are asked for"
    if not torch.allclose(first.states, second.states, rtol=1e-5, atol=1e-6):
        return "layers below it give other states each time (is their dropout on?)"
    if second.final is None or reading.final is None or second.final.shape != reading.final.shape:
        return "the blocks pass on more than hidden states"
    difference = (second.final - reading.final).abs()
    if reading.mask is not None and reading.mask.shape == difference.shape[:2]:
        difference = difference[reading.mask]
    if float(difference.max()) > 1e-3 * float(second.final.abs().max()):
        return "the blocks pass on more than hidden states"
    if (
        second.loss is not None
        and reading.loss is not None
        and abs(second.loss - reading.loss) > 1e-3 * (abs(second.loss) + 1e-3)
    ):
        return "the model reads states at padding"
    return None


def probe_reading(
    reader: StateReader,
    layer: int,
    model: nn.Module,
    blocks: nn.ModuleList,
    forward: Callable[[], torch.Tensor | None],
) -> tuple[str | None, list[nn.Parameter]]:
    """Why states read at a layer would not be exact for a batch, or None; and the parameters used below the layer.

    Args:
        reader: the model's.
        layer: where states would be read.
        model: the model.
        blocks: its blocks.
        forward: runs the model on the batch and gives the loss, if the batch has labels.
    """
    probes: list[StateProbe] = []
    with torch.random.fork_rng(), torch.no_grad():
        for seed in (0, 1, 1):
            torch.manual_seed(seed)
            known = probes[1].states if len(probes) == 2 else None
            probe = StateProbe(layer, model, blocks, known)
            with probe, reader.reading(probe):
                loss = forward()
            probe.loss = None if loss is None else float(loss)
            probes.append(probe)
    return why_not_exact(*probes), probes[0].parameters
