"""`PrependAttachment`: what one model with prompts in front of the text shares between its layers.

Blocks see hidden states and a mask that no longer tell which tokens are padding, targets or instruction. So the model's
forward and `generate` are wrapped, and note what they were passed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sptune.errors import InputError
from sptune.modeling.calls import WrappedMethod, argument_positions
from sptune.modeling.forward_context import AdapterSettings
from sptune.modeling.prepend.families import PrependBackbone
from sptune.modeling.prepend.prompt_generators import INSTANCE_AWARE
from sptune.modeling.prepend.prompted_forward import PrependContext, PromptedForward
from sptune.modeling.prepend.source_mask import SourceWarnings, instruction_length, real_tokens, source_tokens
from sptune.modeling.targets import has_language_model_head


class PrependAttachment:
    """Prompts in front of the text, attached to one model.

    Args:
        model: the model that was given to PEFT, head included.
        backbone: its blocks.
        settings: of the model's adapters, by name.

    Attributes:
        context: the calls under way, by thread.
    """

    def __init__(self, model: nn.Module, backbone: PrependBackbone, settings: dict[str, AdapterSettings]) -> None:
        self.model = model
        self.backbone = backbone
        self.settings = settings
        self.context = PrependContext()
        self._warnings = SourceWarnings(model, backbone.causal)
        self._wrapped = [
            WrappedMethod(backbone.base_model, "forward", self._run_base_model),
            WrappedMethod(model, "forward", self._run_model),  # outside, where both are one module
        ]
        self._hooks = [
            model.register_forward_pre_hook(self._note_call, with_kwargs=True),
            model.register_forward_hook(self._forget_call, always_call=True),
        ]
        if hasattr(model, "generate"):
            # Without a cache, every step of generation reads the whole text again, generated tokens included. Only
            # `generate` knows where the instruction ends.
            self._wrapped.append(WrappedMethod(model, "generate", self._run_generate))

    def remove(self) -> None:
        """Restore the model's methods and remove the hooks."""
        for method in reversed(self._wrapped):
            method.remove()
        for hook in self._hooks:
            hook.remove()

    @property
    def forward(self) -> PromptedForward:
        """The base model's forward under way.

        Raises:
            InputError: there is none.
        """
        forward = self.context.forward
        if forward is None:
            name = type(self.backbone.base_model).__name__
            raise InputError(
                f"A block ran outside a forward of {name}, so it cannot know which tokens are padding; call the model "
                f"or its {name}, not parts of it."
            )
        return forward

    def source_mask(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The tokens that generators may look at in the forward under way; see method section 2.

        All real tokens; in a causal language model with labels only those before the first label that is not -100,
        since later ones have attended to a target; during generation only the instruction.

        Args:
            hidden_states: of the text, (batch, length, d).

        Returns:
            (batch, length) bool.
        """
        forward = self.forward
        if forward.source_mask is None:
            forward.source_mask = forward.align(self._make_source_mask(forward, hidden_states))
        return forward.source_mask

    def _make_source_mask(self, forward: PromptedForward, hidden_states: torch.Tensor) -> torch.Tensor:
        real = real_tokens(forward.inputs.get("attention_mask"), hidden_states)
        inputs = self.context.model_inputs or {}
        has_targets = self.backbone.causal and has_language_model_head(self.model)
        targets = inputs.get("labels") if has_targets else None
        source = source_tokens(real, source_mask=inputs.get("source_mask"), targets=targets)
        self._warnings.check_source(source, real)
        end = instruction_length(self.context.instruction, forward.inputs.get("input_ids"))
        if end is None:
            return source
        length = real.shape[1]
        if length < end:
            raise InputError(
                f"The text of {end} tokens arrives in pieces ({length} first), but this adapter's generator must see "
                "all of it to make the prompts; generate without prefill_chunk_size and guidance_scale, or train a "
                "generator='static' adapter."
            )
        return source & (torch.arange(length, device=source.device) < end)

    # -- the wrapped methods -----------------------------------------------------------------------------------------

    def _note_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a call: keep its arguments, in case another library has replaced the wrapped forward (TRL)."""
        if not torch.compiler.is_compiling():
            self._wrap_again()
        positions = argument_positions(module.forward) if args else {}
        self.context.call = {**dict(zip(positions, args, strict=False)), **kwargs}
        return args, {name: value for name, value in kwargs.items() if name != "source_mask"}

    def _wrap_again(self) -> None:
        """Wrap methods that have been restored since, as accelerate does when its hooks are removed."""
        for place, wrapped in enumerate(self._wrapped):
            function = getattr(getattr(wrapped.module, wrapped.name), "__func__", None)
            if function is getattr(type(wrapped.module), wrapped.name) and wrapped.around is not None:
                self._wrapped[place] = WrappedMethod(wrapped.module, wrapped.name, wrapped.around)

    def _forget_call(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.context.call = None

    def _run_model(self, method: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        inputs = {**(self.context.call or {}), **method.arguments(args, kwargs)}
        kwargs.pop("source_mask", None)
        with self.context.having(call=None, model_inputs=inputs, forward=None):
            return method.method(*args, **kwargs)

    def _run_base_model(self, method: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        context = self.context
        if context.call is not None:
            with context.having(call=None, model_inputs=context.call, forward=None):
                return self._run_base_model(method, *args, **kwargs)
        if context.forward is not None:
            # The base model is called while it runs: these are other tokens than those of the labels.
            with context.having(model_inputs={}, forward=None):
                return self._run_base_model(method, *args, **kwargs)
        if any(settings.config.generator in INSTANCE_AWARE for settings in list(self.settings.values())):
            self._warnings.check_targets(context.model_inputs or {})
        forward = PromptedForward(self.backbone, method.arguments(args, kwargs))
        with context.having(forward=forward):
            return self._remove_prompts(forward, method.method(*args, **kwargs))

    def _run_generate(self, method: WrappedMethod, *args: Any, **kwargs: Any) -> Any:
        inputs = method.arguments(args, kwargs)
        given = (inputs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
        text = next((one for one in given if isinstance(one, torch.Tensor)), None)
        with self.context.having(instruction=text):
            return method.method(*args, **kwargs)

    def _remove_prompts(self, forward: PromptedForward, output: Any) -> Any:
        """The base model's output without prompts in the hidden states of its layers."""
        length = forward.text_length
        if length is None or not forward.has_prompts:
            return output

        def text(hidden_states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return tuple(forward.restore(s[:, -length:]) if s.shape[1] > length else s for s in hidden_states)

        if isinstance(output, tuple):  # return_dict=False
            return tuple(text(part) if self._are_hidden_states(part) else part for part in output)
        if getattr(output, "hidden_states", None) is not None:
            output.hidden_states = text(output.hidden_states)
        return output

    def _are_hidden_states(self, part: Any) -> bool:
        return isinstance(part, tuple) and all(
            isinstance(s, torch.Tensor) and s.dim() == 3 and s.shape[-1] == self.backbone.hidden_size for s in part
        )
