"""The source mask: the tokens that prompt generators may look at (method section 2)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from sptune.modeling.targets import before_first_target, has_language_model_head

logger = logging.getLogger(__name__)


def real_tokens(attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor:
    """The tokens that are no padding.

    Args:
        attention_mask: (batch, length or more), ones at real tokens; None if all are.
        hidden_states: (batch, length, d), for shape and device.

    Returns:
        (batch, length) bool.
    """
    batch, length = hidden_states.shape[:2]
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=hidden_states.device)
    return attention_mask[:, -length:].to(hidden_states.device, torch.bool)


def source_tokens(
    real: torch.Tensor, *, source_mask: torch.Tensor | None = None, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """The real tokens that a generator may look at: those of a given mask, else those before the first target.

    Args:
        real: (batch, length) bool.
        source_mask: (batch, length), from the user.
        targets: labels of a causal language model, (batch, length).

    Returns:
        (batch, length) bool; `real` itself if it is not narrowed.
    """
    if source_mask is not None:
        return real & source_mask.to(real.device, torch.bool)
    if targets is not None and targets.shape == real.shape:
        return real & before_first_target(targets.to(real.device))
    return real


def instruction_length(instruction: torch.Tensor | None, tokens: torch.Tensor | None) -> int | None:
    """The length of the text given to the `generate` under way; None for a forward on another text inside it.

    Args:
        instruction: what `generate` was given: token ids (batch, length), or embeddings; None outside of it.
        tokens: the token ids of this forward, (batch, length), if it has some.
    """
    if instruction is None:
        return None
    if instruction.dim() == 2 and tokens is not None and tokens.shape[1] > instruction.shape[1]:
        # Beams repeat the rows. A text that does not begin with them is another one, asked for by a logits processor.
        copies = max(len(tokens) // len(instruction), 1)
        expected = instruction.repeat_interleave(copies, 0).to(tokens.device)
        if not torch.equal(tokens[:, : instruction.shape[1]], expected):
            return None
    return instruction.shape[1]


class SourceWarnings:
    """Warns, once each, of trainings in which generators see other tokens than they will see in `generate`.

    Args:
        model: the model that was given to PEFT, head included.
        causal: whether text attends only backwards.
    """

    def __init__(self, model: nn.Module, causal: bool) -> None:
        self.model = model
        self.causal = causal
        self._warned_of_targets = self._warned_of_short_source = False

    def check_targets(self, inputs: dict[str, Any]) -> None:
        """Warn if nothing in the inputs of a training forward, given by name, says which tokens are targets."""
        if self._warned_of_targets or not (self._training() and has_language_model_head(self.model)):
            return
        kept = inputs.get("logits_to_keep")
        if kept is not None and not (isinstance(kept, int) and kept == 0):
            return
        if any(inputs.get(name) is not None for name in ("labels", "source_mask")):
            return
        self._warned_of_targets = True
        logger.warning(
            "Training a causal language model without labels: the prompt generators see every token, targets "
            "included. Pass labels (-100 on the instruction) or source_mask to the model."
        )

    def check_source(self, source: torch.Tensor, real: torch.Tensor) -> None:
        """Warn if source and real tokens, both (batch, length) bool, leave a generator with a single token to read."""
        if self._warned_of_short_source or source is real or not self._training():
            return
        if torch.compiler.is_compiling():  # a graph cannot look at values
            return
        rows = int(((source.sum(-1) <= 1) & (real.sum(-1) > 1)).sum())
        if rows:
            self._warned_of_short_source = True
            logger.warning(
                "In %d of %d rows of this batch at most the first token stands before the first label, so the prompt "
                "generators have nothing to read and make the same prompts for every text, while in generate() they "
                "will read the whole instruction. Set the labels of the instruction to -100, pass source_mask, or "
                "train a generator that reads no other tokens: SPTConfig(generator='static') or "
                "SPTConfig(placement='add').",
                rows,
                len(source),
            )

    def _training(self) -> bool:
        return self.causal and self.model.training and torch.is_grad_enabled()
