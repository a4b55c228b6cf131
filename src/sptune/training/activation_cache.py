"""The prefix cache: hidden states at the first trained layer, computed once for each example.

Layers below the first one with a trained weight are frozen, so the same text gives the same states there in every
epoch. They are kept for each real token, without padding, and found again by the tokens themselves: a batch whose
tokens are not those the states were made from is computed in full.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sptune.errors import InputError
from sptune.modeling.backbones import unwrapped
from sptune.modeling.calls import argument_positions

logger = logging.getLogger(__name__)

GIB = 2**30
DTYPES = ("float32", "bfloat16", "float16")
ROW = "prefix_row"
_NAME = "prefix-cache-"
ABOUT_FILE, STATES_FILE, FILLED_FILE = "about.json", "states.bin", "filled.bin"


class PrefixSource(Protocol):
    """Where a forward gets the states at the first prompt layer from, and leaves those that it had to compute.

    Attributes:
        layer: the first prompt layer.
    """

    layer: int

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """States (batch, length, d) for these tokens, or None to compute them."""

    def record(self, states: torch.Tensor) -> None:
        """Take the states (batch, length, d) that were computed after `read` gave None."""


@dataclass(frozen=True)
class PrefixCacheSettings:
    """How a trainer caches.

    Attributes:
        memory: up to this many GiB the cache is kept in memory, above it in a file that is mapped into memory.
        dtype: number format of the stored states; None for that of the backbone. A shorter one saves space and is no
            longer exact.
        folder: where the file goes; None for the trainer's `output_dir`.
        keep: leave the file to later trainings on the same data, whose prompts begin at the same layer.

    Raises:
        InputError: a value is not allowed.
    """

    memory: float = 4.0
    dtype: str | None = None
    folder: str | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.memory >= 0:
            raise InputError(f"prefix_cache_memory={self.memory!r} is not allowed; give 0 or more GiB.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"prefix_cache_dtype={self.dtype!r} is not allowed; choose one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class PrefixPlan:
    """Whether a training caches, and what that takes.

    Attributes:
        layer: the first prompt layer.
        hidden_size: d.
        dtype: number format to store in.
        size: bytes, if every example is seen.
        folder: where they go; None for memory.
        reason: why nothing is cached; None if it is.
    """

    layer: int = 0
    hidden_size: int = 0
    dtype: torch.dtype = torch.float32
    size: int = 0
    folder: Path | None = None
    reason: str | None = None

    def __str__(self) -> str:
        if self.reason is not None:
            return f"No prefix cache: {self.reason}."
        where = "in memory" if self.folder is None else f"in {self.folder}"
        below = "layer 0 runs" if self.layer == 1 else f"layers 0 to {self.layer - 1} run"
        return f"Prefix cache: {below} once for each text; at most {size_in_words(self.size)} {where}."


@dataclass(frozen=True)
class TokenTable:
    """The real tokens of all examples in one row.

    Attributes:
        tokens: (total tokens,) int64.
        starts: (examples,) where each example begins.
        lengths: (examples,) its number of tokens.
        types: (total tokens,) int64, the tokens' `token_type_ids`, or nothing.
    """

    tokens: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    types: torch.Tensor

    @classmethod
    def of(cls, datasets: Sequence[Any]) -> TokenTable:
        """The table of several datasets, one after another.

        Raises:
            KeyError: an example has no `input_ids`.
        """
        columns = [_flat_columns(dataset) for dataset in datasets]
        lengths, tokens, types = (torch.cat(parts) for parts in zip(*columns, strict=True))
        return cls(tokens, lengths.cumsum(0) - lengths, lengths, types)

    def positions(
        self,
        rows: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where in the table each token of a batch stands, or None if the batch holds other tokens.

        Args:
            rows: (batch,) numbers of the examples.
            input_ids: (batch, length).
            attention_mask: (batch, length), or None if all tokens are real.
            token_type_ids: (batch, length), or None if all are 0.

        Returns:
            Indices (batch, length), those at padding pointing anywhere in the example, and the mask as booleans.
        """
        if input_ids.dim() != 2 or len(rows) != len(input_ids):
            return None
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if mask.shape != input_ids.shape:
            return None
        number = (mask.cumsum(-1) - 1).clamp_min(0)
        lengths = self.lengths[rows]
        if not torch.equal(mask.sum(-1), lengths) or not bool(lengths.all()):
            return None
        index = self.starts[rows][:, None] + number
        same = self.tokens[index] == input_ids
        if len(self.types) or token_type_ids is not None:
            types = self.types[index] if len(self.types) else torch.zeros_like(index)
            same &= types == (0 if token_type_ids is None else token_type_ids)
        return (index, mask) if bool((same | ~mask).all()) else None


class PrefixCache:
    """States at the first prompt layer, for the real tokens of every example.

    Args:
        layer: the first prompt layer.
        table: the examples' tokens.
        hidden_size: d.
        dtype: number format to store in.
        folder: where to keep them, or None for memory. What an earlier, interrupted run with the same `key` left there
            is used.
        key: fingerprint of all that the states depend on; see `fingerprint`.

    Raises:
        OSError: the disk is full or cannot be written to.
    """

    def __init__(
        self,
        layer: int,
        table: TokenTable,
        hidden_size: int,
        dtype: torch.dtype,
        folder: Path | None = None,
        key: str = "",
    ) -> None:
        self.layer = layer
        self.table = table
        self.given_up = False
        total, examples = len(table.tokens), len(table.lengths)
        self._file: Any = None
        self.folder = None if folder is None else folder / (_NAME + key[:16])
        if self.folder is None:
            self.states = torch.empty(total, hidden_size, dtype=dtype)
            self.filled = torch.zeros(examples, dtype=torch.bool)
            return
        about = {"key": key, "tokens": total, "examples": examples, "hidden_size": hidden_size, "dtype": str(dtype)}
        size = total * hidden_size * dtype.itemsize
        if not _holds(self.folder, about):
            _create(self.folder, about, size, examples)
        # The states are mapped for reading only and written as a file: writing to a map on a full disk kills the
        # process, while writing to a file raises an error.
        self._file = (self.folder / STATES_FILE).open("r+b", buffering=0)
        mapped = torch.from_file(str(self.folder / STATES_FILE), shared=True, size=total * hidden_size, dtype=dtype)
        self.states = mapped.view(total, hidden_size)
        self.filled = torch.from_file(str(self.folder / FILLED_FILE), shared=True, size=examples, dtype=torch.bool)

    def rows(self, rows: torch.Tensor) -> CachedRows:
        """The states of a batch of examples, for the forwards of a model.

        Args:
            rows: (batch,) numbers of the examples in the table.
        """
        return CachedRows(self, rows.cpu())

    def write(self, rows: torch.Tensor, index: torch.Tensor, states: torch.Tensor) -> None:
        """Store the states of some examples.

        Args:
            rows: (batch,) the examples.
            index: (tokens,) where each token stands in the table, example after example.
            states: (tokens, d).

        Raises:
            OSError: the disk is full.
        """
        stored = states.to(self.states.dtype)
        if not bool(stored.isfinite().all()) and bool(states.isfinite().all()):
            raise OSError(f"the states are too large for {self.states.dtype}")
        states = stored
        if self._file is None:
            self.states[index] = states
        else:
            width = states.shape[1] * states.dtype.itemsize
            for part in states.split(self.table.lengths[rows].tolist()):
                start, index = int(index[0]), index[len(part) :]
                self._file.seek(start * width)
                data = _bytes(part)
                while data:  # a file without a buffer may take less than it is given
                    data = data[self._file.write(data) :]
        self.filled[rows] = True

    def give_up(self) -> None:
        """Read and write nothing any more."""
        self.given_up = True
        self.filled.zero_()

    def close(self, remove: bool = True) -> None:
        """Give memory and file back.

        Args:
            remove: whether to delete the file too; else a later run with the same key goes on with it.
        """
        self.states, self.filled = self.states.new_empty(0), self.filled.new_empty(0)
        if self._file is not None:
            self._file.close()
        if remove and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class CachedRows:
    """A `PrefixSource` for one batch of examples.

    Args:
        cache: the cache.
        rows: (batch,) numbers of the examples.
    """

    def __init__(self, cache: PrefixCache, rows: torch.Tensor) -> None:
        self.cache = cache
        self.layer = cache.layer
        self.rows = rows
        self._found: tuple[torch.Tensor, torch.Tensor] | None = None

    @torch.compiler.disable
    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The stored states (batch, length, d); None if the tokens are others, or some example is not stored yet.

        The batch may hold the examples several times over, as in a search under several masks.
        """
        mask, types = (None if one is None else one.cpu() for one in (attention_mask, token_type_ids))
        rows = self.rows.repeat(max(len(input_ids) // len(self.rows), 1))
        self._found = self.cache.table.positions(rows, input_ids.cpu(), mask, types)
        if self._found is None or not bool(self.cache.filled[rows].all()):
            return None
        index, _ = self._found
        states = self.cache.states.index_select(0, index.flatten())
        return states.view(*index.shape, -1).to(input_ids.device)

    @torch.compiler.disable
    def record(self, states: torch.Tensor) -> None:
        """Store states (batch, length, d), unless they belong to other tokens."""
        if self._found is None or self.cache.given_up or states.shape[:2] != self._found[0].shape:
            return
        index, mask = self._found
        size = len(self.rows)  # more rows are repetitions
        index, mask, states = index[:size], mask[:size], states.detach()[:size].cpu()
        try:
            self.cache.write(self.rows, index[mask], states[mask])
        except OSError as error:
            logger.warning("The prefix cache cannot grow (%s); training goes on without it.", error)
            self.cache.give_up()


class BatchPrefix:
    """A `PrefixSource` for several forwards over one batch, whose prompts begin at different layers.

    The forward that begins highest should come first: it goes through all layers that others have below their prompts.

    Args:
        blocks: the model's blocks.

    Attributes:
        layer: where the prompts of the forward under way begin.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        self.blocks = blocks
        self._names = [next(iter(argument_positions(unwrapped(block).forward))) for block in blocks]
        self.layer = 0
        self._states: dict[int, torch.Tensor] = {}
        self._passed: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def noting(self) -> Iterator[BatchPrefix]:
        """In the forwards inside, note what comes into each block."""
        handles = [
            block.register_forward_pre_hook(functools.partial(self._note, index), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """The states at `layer`, if a forward before has come so far without prompts."""
        self._passed = {}
        return self._states.get(self.layer)

    def record(self, states: torch.Tensor) -> None:
        """Keep what was noted on the way up to `layer`."""
        self._states |= self._passed

    def _note(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if 0 < index <= self.layer and index not in self._states:
            self._passed[index] = (args[0] if args else kwargs[self._names[index]]).detach()


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


class PrefixProbe:
    """A `PrefixSource` that shows what one forward does at a layer, to find out whether a cache is exact there.

    Args:
        layer: where the cached states would be read.
        model: what is trained.
        blocks: its blocks.
        known: the states to give to the forward; None to compute them.

    Attributes:
        states: what the forward inside the probe's context had at the layer.
        final: what left the last block.
        loss: that of the forward, if there is one.
        mask: (batch, length), true at real tokens; None if all are.
        parameters: those that were used before the layer.
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

    def __enter__(self) -> PrefixProbe:
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
        """What is known, with anything at all at padding, as a cache gives it."""
        self.mask = None if attention_mask is None else attention_mask.bool()
        if self.known is None or self.mask is None:
            return self.known
        return torch.where(self.mask[..., None], self.known, self.known.flip(0, 1))

    def record(self, states: torch.Tensor) -> None:
        """Keep the states, unless the model has lengthened them."""
        if self.mask is None or states.shape[:2] == self.mask.shape:
            self.states = states.detach().clone()


def why_not_exact(first: PrefixProbe, second: PrefixProbe, reading: PrefixProbe) -> str | None:
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


@dataclass
class Numbered:
    """A dataset whose examples carry their number in the cache, in the column `prefix_row`.

    Attributes:
        dataset: with a length and an index, of dictionaries.
        first: number of its first example.
    """

    dataset: Any
    first: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        example = copy.copy(self.dataset[index])
        example[ROW] = self.first + index
        return example


def number_examples(dataset: Any, first: int) -> Any:
    """The dataset with a column `prefix_row` that counts from `first`."""
    if hasattr(dataset, "add_column") and hasattr(dataset, "column_names"):
        return dataset.add_column(ROW, np.arange(first, first + len(dataset)))
    return Numbered(dataset, first)


@dataclass(frozen=True)
class NumberedCollator:
    """A collator that carries the numbers of the examples past another one, which knows nothing of them."""

    collator: Any

    def __call__(self, features: list[Any]) -> Any:
        """The other collator's batch, and `prefix_row` (batch,) if every example has one."""
        rows, examples = [], []
        for feature in features:
            if isinstance(feature, MutableMapping) and ROW in feature:
                feature = copy.copy(feature)
                rows.append(int(feature.pop(ROW)))
            examples.append(feature)
        batch = self.collator(examples)
        if len(rows) == len(features):
            batch[ROW] = torch.tensor(rows)
        return batch


def cache_folders(folder: Path, but: str) -> list[Path]:
    """What trainings left in a folder, except for the one with the key `but`."""
    return [path for path in folder.glob(_NAME + "*") if path.name != _NAME + but[:16]]


def fingerprint(
    base_model: nn.Module, first_layer: int, table: TokenTable, layers: nn.ModuleList, precision: str = "no"
) -> str:
    """A hash of everything the states at a layer depend on: frozen weights, configuration, tokens and the layer.

    Tokens stand for text, tokenizer and length limit. Weights of the blocks from `first_layer` on do not count.

    Args:
        base_model: whose forward runs the blocks.
        first_layer: the layer.
        table: the examples' tokens.
        layers: the blocks.
        precision: of autocast.
    """
    digest = hashlib.blake2b(digest_size=32)
    config: Any = base_model.config
    implementation = getattr(config, "_attn_implementation", None)
    about = (first_layer, config.to_json_string(), implementation, precision, transformers.__version__)
    digest.update(repr(about).encode())
    above = {id(parameter) for layer in layers[first_layer:] for parameter in layer.parameters()}
    for name, parameter in base_model.named_parameters():
        if id(parameter) not in above and not parameter.requires_grad:
            digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode())
            for part in _parts(parameter.detach()):
                digest.update(_bytes(part.cpu()))
    for tensor in (table.tokens, table.lengths, table.types):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _flat_columns(dataset: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths, `input_ids` and `token_type_ids` (or nothing) of all examples, padding left out."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    if hasattr(dataset, "select_columns") and hasattr(dataset, "column_names"):
        table = dataset.select_columns([name for name in names if name in dataset.column_names])
        arrow = table.with_format("arrow")[:]
        lists = {name: pa.concat_arrays(arrow[name].chunks) for name in arrow.column_names}
    else:
        rows = [dataset[index] for index in range(len(dataset))]
        lists = {name: pa.array([_plain(row[name]) for row in rows]) for name in names if rows and name in rows[0]}
    lengths = torch.as_tensor(np.array(lists["input_ids"].value_lengths()), dtype=torch.long)
    flat = {name: torch.as_tensor(np.array(column.flatten()), dtype=torch.long) for name, column in lists.items()}
    types = flat.get("token_type_ids", lengths.new_empty(0))
    mask = flat.get("attention_mask")
    if mask is None or bool(mask.all()):
        return lengths, flat["input_ids"], types
    real = mask.bool()
    example = torch.arange(len(lengths)).repeat_interleave(lengths)
    lengths = torch.zeros_like(lengths).index_add_(0, example, mask.clamp_max(1))
    return lengths, flat["input_ids"][real], types[real] if len(types) else types


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _holds(folder: Path, about: dict[str, Any]) -> bool:
    try:
        return json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8")) == about
    except (OSError, ValueError):
        return False


def _create(folder: Path, about: dict[str, Any], size: int, examples: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        shutil.rmtree(folder)
        raise OSError(f"{size_in_words(size)} are needed in {folder.parent}, where {size_in_words(free)} are free")
    with (folder / STATES_FILE).open("wb") as file:
        file.truncate(size)
    (folder / FILLED_FILE).write_bytes(bytes(examples))
    # Written last: without it, the folder is no cache.
    (folder / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or the codes and scales of a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in cast(Any, tensor).__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)


def size_in_words(size: float) -> str:
    """A number of bytes for people: 12 MB, 3.4 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
