"""`LoadedAdapter`: one version of an adapter in a model that holds several."""

from __future__ import annotations

from dataclasses import dataclass

from sptune.errors import InputError
from sptune.runs.task_kinds import AnyEncoder
from sptune.saved_adapters.adapter_folder import AdapterFolder
from sptune.tasks import TaskEncoder
from sptune.tasks.generation_encoder import GenerationEncoder


@dataclass(frozen=True)
class LoadedAdapter:
    """One version of an adapter that a model holds.

    Attributes:
        folder: what its folder says.
        key: its name inside the model; no other version has the same.
        encoder: turns texts or prompts into tokens.
    """

    folder: AdapterFolder
    key: str
    encoder: AnyEncoder

    @property
    def class_encoder(self) -> TaskEncoder:
        """The encoder of an adapter that predicts classes.

        Raises:
            InputError: it writes text.
        """
        if isinstance(self.encoder, GenerationEncoder):
            raise InputError("This adapter writes text and predicts no classes; use one that was trained on classes.")
        return self.encoder

    @property
    def text_encoder(self) -> GenerationEncoder:
        """The encoder of an adapter that writes text.

        Raises:
            InputError: it predicts classes.
        """
        if isinstance(self.encoder, TaskEncoder):
            raise InputError("This adapter predicts classes and writes no text; use one that was trained to generate.")
        return self.encoder

    @property
    def writes(self) -> bool:
        """Whether it writes text."""
        return isinstance(self.encoder, GenerationEncoder)
