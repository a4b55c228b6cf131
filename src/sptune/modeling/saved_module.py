"""`SavedModule`: a module of `modules_to_save`, with a copy for each adapter and, in a mixed batch, for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional

from sptune.errors import InputError

if TYPE_CHECKING:
    from sptune.modeling.attachment import Attachment

# Up to this number of weights for all rows together, the heads of a batch are one batched product.
MAX_STACKED_WEIGHTS = 2**24


class SavedModule(ModulesToSaveWrapper):
    """PEFT's wrapper, which also runs a mixed batch and loads heads with another number of labels.

    PEFT makes its own wrapper, and `adopt` turns it into this one.

    Attributes:
        attachment: of the model.
    """

    attachment: Attachment

    @classmethod
    def adopt(cls, wrapper: ModulesToSaveWrapper, attachment: Attachment) -> None:
        """Turn PEFT's wrapper into this one."""
        wrapper.__class__ = cls
        adopted = cast(SavedModule, wrapper)
        adopted.attachment = attachment
        attachment.saved_modules.append(adopted)

    def copy_of(self, adapter_name: str) -> nn.Module | None:
        """An adapter's copy of the module; None if the adapter does not save it."""
        return self.modules_to_save._modules.get(adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active adapter's copy, or in a mixed batch that of each row."""
        mixed_batch = self.attachment.context.mixed_batch
        if mixed_batch is None or self.disable_adapters:
            return super().forward(*args, **kwargs)
        tensor = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)), None)
        modules = mixed_batch.modules_of(self, len(mixed_batch.names) if tensor is None else len(tensor))
        distinct = list(dict.fromkeys(modules))
        if len(distinct) == 1:
            return distinct[0](*args, **kwargs)
        self._check_rows(tensor)
        if tensor is not None and len(args) == 1 and not kwargs and _can_be_stacked(modules, tensor.device):
            return run_linears(cast(list[nn.Linear], modules), tensor)
        return run_in_turn(modules, args, kwargs)

    def _check_rows(self, tensor: torch.Tensor | None) -> None:
        """Refuse inputs whose rows are positions or distances and not examples; their number may fit by chance.

        Raises:
            InputError: the module gets such an input.
        """
        module = self.original_module
        heads = getattr(self.attachment.model.config, "num_attention_heads", None)
        # T5 embeds (queries, keys) as a bias for each attention head.
        embeds_distances = isinstance(module, nn.Embedding) and module.embedding_dim == heads
        embeds_positions = isinstance(module, nn.Embedding) and tensor is not None and tensor.dim() < 2
        # DeBERTa normalizes the weight of its embedding of distances.
        if embeds_distances or embeds_positions or isinstance(tensor, nn.Parameter):
            raise InputError(
                f"adapter_names: modules_to_save holds a {type(module).__name__} whose input has no row for each "
                "example, so it cannot be that of several adapters; split the batch by adapter and use set_adapter."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # PyTorch calls this before it loads the copies.
        for adapter_name, module in self.modules_to_save.items():
            for name, part in module.named_modules():
                path = f"{prefix}modules_to_save.{adapter_name}.{name}".rstrip(".")
                if isinstance(part, nn.Linear) and self._is_head(name):
                    _resize_rows(part, state_dict.get(f"{path}.weight"))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _is_head(self, name: str) -> bool:
        """Whether the part of this name has a row for each label of the backbone's configuration."""
        part = cast(nn.Linear, self.original_module.get_submodule(name))
        return part.out_features == getattr(self.attachment.model.config, "num_labels", None)


# PEFT's status of a model and its printed form name the class.
SavedModule.__name__ = ModulesToSaveWrapper.__name__


def run_linears(linears: Sequence[nn.Linear], states: torch.Tensor) -> torch.Tensor:
    """The output of each row's linear layer as one batched product.

    Args:
        linears: a layer for each row, with the same number of inputs.
        states: (batch, ..., in).

    Returns:
        (batch, ..., widest output); -inf where a row's layer has fewer outputs.
    """
    distinct = list(dict.fromkeys(linears))
    index = torch.tensor([distinct.index(one) for one in linears], device=states.device)
    widest = max(one.out_features for one in distinct)
    weights = [functional.pad(one.weight, (0, 0, 0, widest - one.out_features)) for one in distinct]
    biases = [
        functional.pad(
            one.weight.new_zeros(one.out_features) if one.bias is None else one.bias,
            (0, widest - one.out_features),
            value=-torch.inf,
        )
        for one in distinct
    ]
    rows = states.reshape(len(linears), -1, states.shape[-1])
    outputs = torch.baddbmm(torch.stack(biases)[index, None], rows, torch.stack(weights)[index].mT)
    return outputs.reshape(*states.shape[:-1], widest)


def run_in_turn(modules: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The output of each row's module, one module after the other.

    Args:
        modules: a module for each row.
        args: of the call; tensors with a row for each module are split.
        kwargs: the others.

    Returns:
        (batch, ...); -inf in the last dimension where a row's module has fewer outputs.

    Raises:
        InputError: a module returns something else than a tensor with a row for each row that it got.
    """
    batch = len(modules)
    distinct = list(dict.fromkeys(modules))
    rows = [[number for number, module in enumerate(modules) if module is one] for one in distinct]

    def part(value: Any, numbers: list[int]) -> Any:
        has_rows = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch
        return value[numbers] if has_rows else value

    outputs = []
    for module, numbers in zip(distinct, rows, strict=True):
        output = module(*(part(one, numbers) for one in args), **{k: part(v, numbers) for k, v in kwargs.items()})
        if not isinstance(output, torch.Tensor) or len(output) != len(numbers):
            raise InputError(
                f"adapter_names: modules_to_save holds a {type(module).__name__}, which does not return a tensor with "
                "a row for each example, so its rows cannot be those of several adapters; split the batch by adapter "
                "and use set_adapter."
            )
        outputs.append(output)
    widest = max(output.shape[-1] for output in outputs)
    padded = [functional.pad(one, (0, widest - one.shape[-1]), value=-torch.inf) for one in outputs]
    order = torch.tensor([number for numbers in rows for number in numbers], device=padded[0].device)
    return torch.cat(padded)[order.argsort()]


def _can_be_stacked(modules: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether the rows' modules are small linear layers of one dtype, with their weights on the device of the input."""
    linears = [one for one in modules if type(one) is nn.Linear and one.weight.device == device]
    if len(linears) < len(modules) or len({one.weight.dtype for one in linears}) > 1:
        return False
    return len(linears) * max(one.weight.numel() for one in linears) <= MAX_STACKED_WEIGHTS


def _resize_rows(linear: nn.Linear, weight: torch.Tensor | None) -> None:
    """Give a linear layer as many outputs as a saved weight has; its own are lost."""
    if weight is None or weight.dim() != 2 or weight.shape[0] == linear.out_features:
        return
    for name in ("weight", "bias"):
        parameter = getattr(linear, name)
        if parameter is not None:
            resized = parameter.new_zeros(weight.shape[0], *parameter.shape[1:])
            setattr(linear, name, nn.Parameter(resized, requires_grad=parameter.requires_grad))
    linear.out_features = weight.shape[0]
