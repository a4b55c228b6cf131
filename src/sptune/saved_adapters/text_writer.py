"""`TextWriter`: one saved adapter that writes text, with its backbone, for `sptune evaluate` and `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sptune.modeling.loading import load_backbone, load_config, load_tokenizer
from sptune.runs.evaluation import Metrics, Rows
from sptune.runs.progress import Monitor
from sptune.runs.text_evaluation import DEFAULT_MAX_NEW_TOKENS, TextEvaluation
from sptune.saved_adapters.adapter_folder import AdapterFolder
from sptune.saved_adapters.adapter_loading import load_with_backbone
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_task import GenerationExample, GenerationTask


class TextWriter:
    """Evaluates an adapter, and writes what follows prompts.

    Args:
        model: the backbone with the adapter.
        evaluation: what is measured.
        monitor: receives progress events.
    """

    def __init__(self, model: Any, evaluation: TextEvaluation, monitor: Monitor) -> None:
        self.model = model
        self.evaluation = evaluation
        self.monitor = monitor

    def evaluate(self, examples: Sequence[GenerationExample]) -> tuple[Metrics, Rows]:
        """Loss, perplexity, exact match and ROUGE-L, and a generated text for each example."""
        return self.evaluation.evaluate(self.model, examples, self.monitor)

    def predict(self, examples: Sequence[GenerationExample]) -> Rows:
        """A generated text for each example."""
        return self.evaluation.predict(self.model, examples, self.monitor)


def load_writer(
    saved: AdapterFolder,
    task: GenerationTask,
    examples: Sequence[GenerationExample],
    max_new_tokens: int | None,
    monitor: Monitor,
) -> TextWriter:
    """Load an adapter that writes text, and its backbone.

    Args:
        saved: the content of the adapter folder.
        task: its task, with the columns of the data at hand.
        examples: what it is loaded for.
        max_new_tokens: the maximum length of a text in tokens; None for that of the training.
        monitor: receives progress events.

    Raises:
        InputError: a prompt or the adapter's maximum length is too long, or the weights cannot be loaded.
    """
    monitor.stage("Loading the adapter and the backbone")
    tokenizer = load_tokenizer(saved.backbone.source)
    length = saved.input_length(load_config(saved.backbone.source), tokenizer)
    encoder = GenerationEncoder(task, tokenizer, max_length=length)
    encoder.encode_prompts(examples)  # refuses those that are too long
    backbone, _ = load_backbone(saved.backbone, tokenizer)
    model = load_with_backbone(saved, backbone)
    new_tokens = max_new_tokens or saved.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    return TextWriter(model, TextEvaluation(task, encoder, new_tokens), monitor)
