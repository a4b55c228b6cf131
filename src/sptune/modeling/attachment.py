"""`Attachment`: what the wrapped blocks of one model share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from sptune.config import SPTConfig
from sptune.modeling.backbones import Backbone, DropoutRates, restore_dropout
from sptune.modeling.forward_context import AdapterSettings, ForwardContext

if TYPE_CHECKING:
    from sptune.modeling.prepend.prepend_attachment import PrependAttachment
    from sptune.modeling.saved_module import SavedModule


class Attachment:
    """Prompts attached to one model.

    Args:
        model: the model that was given to PEFT, head included.
        backbone: its blocks, found for the placement of the first adapter.

    Attributes:
        settings: of its adapters, by name.
        context: what holds in the forward under way, by thread.
        saved_modules: the wrappers of `modules_to_save`.
        keeps_contexts: whether a block has run in a context, which a second run of it needs.
        removed: whether the prompts were taken off the model.
        dropout_rates: of the model, which training sets to 0.
        prepend: what only prompts in front of the text need; None until an adapter has some.
    """

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        self.model = model
        self.backbone = backbone
        self.settings: dict[str, AdapterSettings] = {}
        self.context = ForwardContext()
        self.saved_modules: list[SavedModule] = []
        self.keeps_contexts = False
        self.removed = False
        self.dropout_rates: DropoutRates = []
        self.prepend: PrependAttachment | None = None

    def settings_of(self, adapter: str) -> AdapterSettings:
        """The settings of an adapter in the forward under way."""
        return self.context.adapters.get(adapter) or self.settings[adapter]

    def prepare_for(self, config: SPTConfig) -> None:
        """Prepare the model for the placement of a new adapter.

        Raises:
            InputError: the model takes no prompts in front of the text.
        """
        if config.placement == "prepend" and self.prepend is None:
            # Imported here so that placement="add" never loads what only "prepend" needs.
            from sptune.modeling.prepend.families import PrependBackbone, find_prepend_backbone
            from sptune.modeling.prepend.prepend_attachment import PrependAttachment

            backbone = self.backbone
            if not isinstance(backbone, PrependBackbone):  # the first adapter was one with placement="add"
                backbone = find_prepend_backbone(self.model, config.layers_path)
            self.prepend = PrependAttachment(self.model, backbone, self.settings)

    def remove(self) -> None:
        """Restore the model's methods and dropout."""
        self.removed = True
        restore_dropout(self.dropout_rates)
        if self.prepend is not None:
            self.prepend.remove()
