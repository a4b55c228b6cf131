"""`Attachment`: what the blocks of one model share, whichever way their prompts are placed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sptune.config import SPTConfig
from sptune.modeling.backbones import Backbone, find_backbone
from sptune.modeling.forward_context import AdapterSettings, ForwardContext

if TYPE_CHECKING:
    from sptune.modeling.prepend.flow import PromptFlow


class Attachment:
    """Prompts attached to one model.

    Args:
        model: the model that was given to PEFT, head included.
        layers_path: where its blocks are, if that was said.

    Attributes:
        backbone: its blocks.
        settings: of its adapters, by name.
        context: what the forward under way knows, by thread.
        flow: what only prompts in front of the text need; None until an adapter has such.

    Raises:
        InputError: no blocks were found.
    """

    def __init__(self, model: nn.Module, layers_path: str | None) -> None:
        self.model = model
        self.backbone: Backbone = find_backbone(model, layers_path)
        self.settings: dict[str, AdapterSettings] = {}
        self.context = ForwardContext()
        self.flow: PromptFlow | None = None

    def settings_of(self, adapter: str) -> AdapterSettings:
        """The settings of an adapter in the forward under way."""
        return self.context.adapters.get(adapter) or self.settings[adapter]

    def prepare_for(self, config: SPTConfig) -> None:
        """Make ready what the placement of a new adapter needs.

        Raises:
            InputError: the model takes no prompts in front of the text.
        """
        if config.placement == "prepend" and self.flow is None:
            # Imported here so that placement="add" never loads what only "prepend" needs.
            from sptune.modeling.prepend.families import find_prepend_backbone
            from sptune.modeling.prepend.flow import PromptFlow

            backbone = find_prepend_backbone(self.model, config.layers_path)
            self.flow = PromptFlow(self.model, backbone, self.settings, self.context)

    def remove(self) -> None:
        """Leave the model's methods as they were found."""
        if self.flow is not None:
            self.flow.remove()
