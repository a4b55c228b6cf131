"""What one forward pass shares between its prompted blocks: masks, rotary tables, source tokens, presence.

Everything extended for the prompts is extended once a forward.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from sptune.errors import InputError
from sptune.modeling.calls import WrappedMethod, argument_positions
from sptune.modeling.forward_context import AdapterSettings, ForwardContext, ForwardState
from sptune.modeling.prepend.families import PrependBackbone
from sptune.modeling.prepend.prompt_generators import INSTANCE_AWARE
from sptune.modeling.prepend.prompt_mixing import presence_bias
from sptune.modeling.targets import before_first_target, has_language_model_head

logger = logging.getLogger(__name__)


class PromptFlow:
    """Prompts in front of the text: what the blocks of one model share in a forward.

    Args:
        model: the model that was given to PEFT, head included.
        backbone: its blocks, as `find_prepend_backbone` finds them.
        settings: of the model's adapters, by name.
        context: what the forward under way knows, by thread.
    """

    def __init__(
        self, model: nn.Module, backbone: PrependBackbone, settings: dict[str, AdapterSettings], context: ForwardContext
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.settings = settings
        self.context = context
        self._warned = self._warned_of_source = False
        self._wrapped = [
            WrappedMethod(backbone.base_model, "forward", self._run_blocks),
            WrappedMethod(model, "forward", self._run_model),  # outside, where both are one module
        ]
        self._hooks = [
            model.register_forward_pre_hook(self._note_call, with_kwargs=True),
            model.register_forward_hook(self._forget_call, always_call=True),
        ]
        if hasattr(model, "generate"):
            # Generation without a cache reads the whole text anew at every token, so that a generator would see the
            # tokens generated so far; only `generate` knows where the instruction ends.
            self._wrapped.append(WrappedMethod(model, "generate", self._run_generate))

    def remove(self) -> None:
        """Leave the model's methods as they were found."""
        for method in reversed(self._wrapped):
            method.remove()
        for hook in self._hooks:
            hook.remove()

    @property
    def state(self) -> ForwardState:
        """The forward under way.

        Raises:
            InputError: there is none.
        """
        state = self.context.state
        if state is None:
            raise InputError(
                f"A block ran outside a forward of {type(self.backbone.base_model).__name__}, so it cannot know which "
                f"tokens are padding; call the model or its {type(self.backbone.base_model).__name__}, not parts of it."
            )
        return state

    # -- the methods wrapped -------------------------------------------------------------------------------------

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a call: its arguments, should somebody have put another forward in place of the wrapped one (TRL)."""
        positions = argument_positions(module.forward) if args else {}
        self.context.call = {**dict(zip(positions, args, strict=False)), **kwargs}
        return args, {name: value for name, value in kwargs.items() if name != "source_mask"}

    def _forget_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.context.call = None

    def _run_model(self, forward: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        inputs = {**(self.context.call or {}), **forward.arguments(args, kwargs)}
        kwargs.pop("source_mask", None)
        with self.context.having(call=None, model_inputs=inputs, state=None):
            return forward.method(*args, **kwargs)

    def _run_blocks(self, forward: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        context, state = self.context, ForwardState(inputs=forward.arguments(args, kwargs))
        if context.call is not None:
            with context.having(call=None, model_inputs=context.call, state=None):
                return self._run_blocks(forward, *args, **kwargs)
        if context.state is not None:
            # Somebody calls the base model while it runs: these are other tokens than those of the labels.
            with context.having(model_inputs={}, state=None):
                return self._run_blocks(forward, *args, **kwargs)
        self._warn_of_targets()
        with context.having(state=state):
            output = forward.method(*args, **kwargs)
            return self._take_prompts_off(output)

    def _run_generate(self, generate: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        inputs = generate.arguments(args, kwargs)
        given = (inputs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
        text = next((one for one in given if isinstance(one, torch.Tensor)), None)
        with self.context.having(generating=text):
            return generate.method(*args, **kwargs)

    def _take_prompts_off(self, output: Any) -> Any:
        tokens = _text(self.state.inputs)
        if tokens is None or not self.state.extended:
            return output
        length = tokens.shape[1]

        def text(hidden_states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(self.restore(s[:, -length:]) if s.shape[1] > length else s for s in hidden_states)

        if isinstance(output, tuple):  # return_dict=False
            return tuple(text(part) if self._are_hidden_states(part) else part for part in output)
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = text(output.hidden_states)
        return output

    def _are_hidden_states(self, part: Any) -> bool:
        return isinstance(part, tuple) and all(
            isinstance(s, torch.Tensor) and s.dim() == 3 and s.shape[-1] == self.backbone.hidden_size for s in part
        )

    def _warn_of_targets(self) -> None:
        """Warn, once, of a training in which generators that read the text cannot know what is a target."""
        inputs = self.context.model_inputs or {}
        if any(inputs.get(name) is not None for name in ("labels", "source_mask")) or inputs.get("logits_to_keep"):
            return
        reading = any(settings.config.generator in INSTANCE_AWARE for settings in self.settings.values())
        training = self.model.training and torch.is_grad_enabled()
        if self._warned or not (training and reading and self.backbone.causal and has_language_model_head(self.model)):
            return
        self._warned = True
        logger.warning(
            "Training a causal language model without labels: the prompt generators see every token, targets "
            "included. Pass labels (-100 on the instruction) or source_mask to the model."
        )

    # -- what blocks ask for -------------------------------------------------------------------------------------

    def check_inputs(self) -> None:
        """Refuse what cannot be right with prompts, once a forward.

        Raises:
            InputError: packed sequences, or an attention mask that is not (batch, length).
        """
        if self.state.checked:
            return
        self.state.checked = True
        inputs = self.state.inputs
        attention_mask = inputs.get("attention_mask")
        if attention_mask is not None and getattr(attention_mask, "ndim", None) != 2:
            form = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask)
            raise InputError(
                f"attention_mask has the form {form}; prompts need one of shape (batch, length) with ones at real "
                "tokens."
            )
        packed = any(inputs.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens", "seq_idx"))
        if packed or _positions_restart(inputs.get("position_ids"), attention_mask):
            raise InputError(
                "The batch holds packed sequences (positions restart within a row), and a prompt stands before a row, "
                "not before each sequence in it; use one sequence a row with padding (packing=False, "
                "padding_free=False)."
            )

    def source_mask(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The tokens a generator may look at, (batch, length) bool; see method section 2.

        All real tokens; in a causal language model with labels only those before the first label that is not -100 (what
        stands behind a target has seen it); during generation only the instruction.
        """
        state = self.state
        if state.source_mask is None:
            state.source_mask = self.align(self._build_source_mask(hidden_states))
        return state.source_mask

    def _build_source_mask(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, length = hidden_states.shape[:2]
        attention_mask = self.state.inputs.get("attention_mask")
        if attention_mask is None:
            real = torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
        else:
            real = attention_mask[:, -length:].to(hidden_states.device, torch.bool)
        mask = real
        inputs = self.context.model_inputs or {}
        labels, source_mask = inputs.get("labels"), inputs.get("source_mask")
        if source_mask is not None:
            mask = real & source_mask.to(real.device, torch.bool)
        elif (
            self.backbone.causal
            and labels is not None
            and labels.shape == mask.shape
            and has_language_model_head(self.model)
        ):
            mask = real & before_first_target(labels.to(real.device))
        self._warn_of_little_to_read(mask, real)
        generate_length = self._generate_length()
        if generate_length is not None:
            if length < generate_length:
                raise InputError(
                    f"The text of {generate_length} tokens arrives in pieces ({length} first), but this "
                    "adapter's generator must see all of it to make the prompts; generate without prefill_chunk_size "
                    "and guidance_scale, or train a generator='static' adapter."
                )
            mask = mask & (torch.arange(length, device=mask.device) < generate_length)
        return mask

    def _generate_length(self) -> int | None:
        """Length of the text given to the `generate` under way; None for a forward on another text inside it."""
        text, tokens = self.context.generating, self.state.inputs.get("input_ids")
        if text is None:
            return None
        if text.dim() == 2 and tokens is not None and tokens.shape[1] > text.shape[1]:
            # Beams repeat the rows; what a logits processor asks the model about does not begin with them.
            copies = max(len(tokens) // len(text), 1)
            if not torch.equal(tokens[:, : text.shape[1]], text.repeat_interleave(copies, 0).to(tokens.device)):
                return None
        return text.shape[1]

    def _warn_of_little_to_read(self, source: torch.Tensor, real: torch.Tensor) -> None:
        """Warn, once, of a training in which generators see next to nothing of what they will see in `generate`."""
        if self._warned_of_source or not (self.backbone.causal and torch.is_grad_enabled() and self.model.training):
            return
        if source is real or torch.compiler.is_compiling():  # a graph cannot look at values
            return
        rows = int(((source.sum(-1) <= 1) & (real.sum(-1) > 1)).sum())
        if rows:
            self._warned_of_source = True
            logger.warning(
                "In %d of %d rows of this batch at most the first token stands before the first label, so the prompt "
                "generators have nothing to read and make the same prompts for every text, while in generate() they "
                "will read the whole instruction. Set the labels of the instruction to -100, pass source_mask, or "
                "train a generator that reads no other tokens: SPTConfig(generator='static') or "
                "SPTConfig(placement='add').",
                rows,
                len(source),
            )

    def attention_mask(
        self,
        mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        num_prompts: int,
        past_length: int,
        inserting: bool,
        gated: bool,
    ) -> torch.Tensor | None:
        """The block's mask, extended by the prompts' columns and, where prompts are inserted, their rows.

        Args:
            mask: as the model passed it to the block: None, boolean (true: attend), additive, or multiplicative.
            hidden_states: (batch, length, d), prompts included where they are inserted; for dtype and length.
            num_prompts: m.
            past_length: text tokens in the cache.
            inserting: whether the prompts are among the queries (not so after prefill).
            gated: whether to weigh the prompts' columns by the presence.
        """
        length = hidden_states.shape[1] - (num_prompts if inserting else 0)
        key = ("mask", id(mask), inserting, gated)
        if key not in self.state.extended:
            extended = self._extend_mask(mask, hidden_states, num_prompts, length, past_length, inserting, gated)
            # The mask is kept beside the result, so that its id is not given to another while this one is in use.
            self.state.extended[key] = (mask, extended)
        extended = self.state.extended[key][1]
        if not gated:
            return extended
        assert self.state.presence is not None
        presence = self.state.presence.to(hidden_states.device)[:, None, None, None]
        slots = presence.expand(-1, 1, 1, num_prompts)
        rest = extended.shape[-1] - num_prompts
        if self.backbone.weighted_attention is not None:
            return extended * pad(slots, (0, rest), value=1.0).to(extended.dtype)
        # Presence may be of higher precision than the mask, whose lowest number bounds the bias then.
        bias = presence_bias(slots)
        if bias.dtype.itemsize > extended.dtype.itemsize:
            bias = bias.clamp_min(torch.finfo(extended.dtype).min)
        return extended + pad(bias, (0, rest)).to(extended.dtype)

    def _extend_mask(
        self,
        mask: torch.Tensor | None,
        hidden_states: torch.Tensor,
        m: int,
        length: int,
        past_length: int,
        inserting: bool,
        gated: bool,
    ) -> torch.Tensor | None:
        causal = self.backbone.causal
        multiplicative = self.backbone.weighted_attention is not None
        device = hidden_states.device
        if mask is None:
            # Attention without a mask is causal from the first key on or not at all; both are right unless several
            # queries meet a cache, where the keys would be aligned wrongly.
            if not gated and not (causal and past_length > 0 and length > 1):
                return None
            if causal:
                keys = torch.arange(past_length + length, device=device)
                queries = torch.arange(past_length, past_length + length, device=device)
                mask = (keys[None] <= queries[:, None])[None, None]
            else:
                mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=device)
        elif multiplicative:
            mask = self._align_mask(mask.to(torch.bool))
        visible, hidden = _visible_and_hidden(mask)
        rows = mask.shape[-2]
        parts = [_full(mask, rows, m, visible), mask]
        extended = torch.cat(parts, dim=-1)
        if inserting and (causal or rows > 1):
            if causal:
                later = torch.ones(m, m, dtype=torch.bool, device=device).triu(1)
                among = _full(mask, m, m, visible).masked_fill(later, hidden)
                prompt_rows = torch.cat([among, _full(mask, m, mask.shape[-1], hidden)], dim=-1)
            else:
                text = mask.amax(dim=-2, keepdim=True) if mask.is_floating_point() else mask.any(-2, keepdim=True)
                text = text.expand(*mask.shape[:-2], m, mask.shape[-1])
                prompt_rows = torch.cat([_full(mask, m, m, visible), text], dim=-1)
            extended = torch.cat([prompt_rows, extended], dim=-2)
        if gated and extended.dtype == torch.bool:
            dtype = hidden_states.dtype
            if multiplicative:
                return extended.to(dtype)
            return torch.zeros_like(extended, dtype=dtype).masked_fill(~extended, torch.finfo(dtype).min)
        return extended

    def position_ids(self, position_ids: torch.Tensor | None, length: int, num_prompts: int) -> torch.Tensor:
        """Position ids (batch or 1, m + length): the prompts stand right before each row's first real token.

        So the text keeps its own positions, and padding in front of it does not push the prompts away.

        Args:
            position_ids: the text's, (batch or 1, length); None for 0, 1, ...
            length: of the text, padding included.
            num_prompts: m.
        """
        key = ("positions", id(position_ids))
        if key not in self.state.extended:
            mask = self.state.inputs.get("attention_mask")
            device = position_ids.device if position_ids is not None else self.backbone_device
            ids = torch.arange(length, device=device)[None] if position_ids is None else position_ids
            first = ids[:, :1]
            if mask is not None:
                ids = ids.expand(mask.shape[0], -1)
                real = mask[:, -length:].to(device, torch.bool)
                first = ids.gather(1, real.to(torch.long).argmax(-1, keepdim=True))
                if position_ids is not None:
                    # A first piece of nothing but padding holds a marker for positions; the text will begin at 0.
                    first = first.masked_fill(~real.any(-1, keepdim=True), 0)
            front = first + torch.arange(-num_prompts, 0, device=device, dtype=ids.dtype)
            self.state.extended[key] = (position_ids, torch.cat([front, ids], dim=1))
        return self.state.extended[key][1]

    def rotary_tables(
        self,
        tables: tuple[torch.Tensor, torch.Tensor],
        position_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        num_prompts: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary tables (cos, sin) of the text with those of the prompts in front; see `position_ids`."""
        key = ("rotary", id(tables))
        if key not in self.state.extended:
            assert self.backbone.rotary is not None
            ids = self.position_ids(position_ids, tables[0].shape[1], num_prompts)[:, :num_prompts]
            front = self.backbone.rotary(hidden_states, ids)
            rows = max(ids.shape[0], tables[0].shape[0])
            extended = tuple(
                torch.cat([new.expand(rows, -1, -1), table.expand(rows, -1, -1)], dim=1)
                for new, table in zip(front, tables, strict=True)
            )
            self.state.extended[key] = (tables, extended)
        return self.state.extended[key][1]

    @property
    def backbone_device(self) -> torch.device:
        """Where the blocks are."""
        return next(self.backbone.layers.parameters()).device

    def align(self, tensor: torch.Tensor) -> torch.Tensor:
        """Roll the rows of (batch, length, ...) so that padding stands behind the text, where that is needed.

        DeBERTa has one table of relative positions for all rows of a batch: with padding between the prompts and the
        text, the prompts would be as far away as there is padding.
        """
        return _roll(tensor, self._padding_in_front())

    def restore(self, tensor: torch.Tensor) -> torch.Tensor:
        """Undo `align`."""
        front = self._padding_in_front()
        return _roll(tensor, None if front is None else -front)

    def _align_mask(self, mask: torch.Tensor) -> torch.Tensor:
        front = self._padding_in_front()
        return _roll(_roll(mask.squeeze(1), front).mT, front).mT.unsqueeze(1)

    def _padding_in_front(self) -> torch.Tensor | None:
        """Number of padding tokens before each row's text, (batch,), or None where it does not matter."""
        mask = self.state.inputs.get("attention_mask")
        if self.backbone.relative_positions is None or mask is None:
            return None
        if "front" not in self.state.extended:
            front = mask.to(torch.long).argmax(-1)
            self.state.extended["front"] = front if bool(front.any()) else None
        return self.state.extended["front"]

    def relative_positions(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """DeBERTa's relative positions for hidden states with prompts in front, or None in other families."""
        if self.backbone.relative_positions is None:
            return None
        if "relative" not in self.state.extended:
            self.state.extended["relative"] = self.backbone.relative_positions(hidden_states)
        return self.state.extended["relative"]


def _text(inputs: dict[str, Any]) -> torch.Tensor | None:
    tokens = inputs.get("input_ids")
    return inputs.get("inputs_embeds") if tokens is None else tokens


def _positions_restart(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> bool:
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] < 2:
        return False
    if attention_mask is None:
        return bool((position_ids.diff(dim=-1) <= 0).any())
    real = attention_mask[:, -position_ids.shape[1] :].to(position_ids.device, torch.bool)
    return bool(((position_ids.diff(dim=-1) < 0) & real[:, 1:] & real[:, :-1]).any())


def _visible_and_hidden(mask: torch.Tensor) -> tuple[Any, Any]:
    if mask.dtype == torch.bool:
        return True, False
    return 0.0, torch.finfo(mask.dtype).min


def _roll(tensor: torch.Tensor, shifts: torch.Tensor | None) -> torch.Tensor:
    """Row b of (batch, length, ...) rolled to the left by shifts[b]."""
    if shifts is None:
        return tensor
    length = tensor.shape[1]
    index = (torch.arange(length, device=tensor.device) + shifts.to(tensor.device)[:, None]) % length
    return tensor[torch.arange(tensor.shape[0], device=tensor.device)[:, None], index]


def _full(mask: torch.Tensor, rows: int, columns: int, value: Any) -> torch.Tensor:
    return mask.new_full((*mask.shape[:-2], rows, columns), value)
