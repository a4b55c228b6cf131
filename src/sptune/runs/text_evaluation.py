"""`TextEvaluation`: the measurements and predictions of a run whose task is text generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sptune.errors import SptuneError
from sptune.runs.card_parts import CardParts, text_parts
from sptune.runs.evaluation import Evaluation, Metrics, Rows
from sptune.runs.progress import Monitor
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_metrics import completion_losses, loss_metrics, text_metrics
from sptune.tasks.generation_task import GenerationExample, GenerationTask
from sptune.tasks.text_generation import batches_to_generate, generate_texts, measure_losses
from sptune.training.trainer import SPTTrainer

DEFAULT_MAX_NEW_TOKENS, DEFAULT_GENERATED_EXAMPLES = 128, 200


class TextEvaluation(Evaluation):
    """Loss and perplexity of completion tokens; exact match and ROUGE-L of generated texts.

    Args:
        task: names the columns.
        encoder: of the task.
        max_new_tokens: the maximum length of a generated text in tokens.
        generated_examples: a run writes completions for this many test examples; None for all.
        learning_rate: of a run, for messages.
    """

    best_metric = "loss"
    greater_is_better = False
    # The logits of one example are as large as its length times the vocabulary.
    min_batch_size = 1

    def __init__(
        self,
        task: GenerationTask,
        encoder: GenerationEncoder,
        max_new_tokens: int,
        generated_examples: int | None = None,
        learning_rate: float | None = None,
    ) -> None:
        self.task = task
        self.encoder = encoder
        self.max_new_tokens = max_new_tokens
        self.generated_examples = generated_examples
        self.learning_rate = learning_rate

    def document(self) -> dict[str, Any]:
        """How long a generated text may be."""
        return {"max_new_tokens": self.max_new_tokens}

    def trainer_options(self) -> dict[str, Any]:
        """The loss is the language model's; of the logits only losses are kept."""
        return {
            "predict_at_labels": True,
            "preprocess_logits_for_metrics": _losses,
            "compute_metrics": lambda outcome: self.split_metrics(outcome.predictions, outcome.label_ids),
        }

    def split_metrics(self, outputs: np.ndarray, labels: np.ndarray) -> Metrics:
        """Loss and perplexity, from summed losses and numbers of tokens (n, 2)."""
        metrics = loss_metrics(outputs)
        if not np.isfinite(metrics["loss"]):
            tried = "" if self.learning_rate is None else f" (it was {self.learning_rate:g})"
            raise SptuneError(f"Training diverged: the loss is no longer a number. Lower learning_rate{tried}.")
        return metrics

    def test(
        self,
        trainer: SPTTrainer,
        dataset: Any,
        order: np.ndarray,
        examples: Sequence[GenerationExample],
        monitor: Monitor,
    ) -> tuple[Metrics, Rows]:
        """The loss of all examples; generated texts of the first `generated_examples`."""
        metrics = self.measure(trainer, dataset)
        some = examples[: self.generated_examples]
        rows = self.predict(trainer.accelerator.unwrap_model(trainer.model), some, monitor)
        return {**metrics, **_compare(rows), "generated_examples": len(rows)}, rows

    def evaluate(self, model: Any, examples: Sequence[GenerationExample], monitor: Monitor) -> tuple[Metrics, Rows]:
        """The loss of all examples, and a generated text for each."""
        monitor.stage("Measuring the loss", batches_to_generate(examples))
        metrics = loss_metrics(measure_losses(model, self.encoder, examples, monitor.step))
        rows = self.predict(model, examples, monitor)
        return {**metrics, **_compare(rows), "examples": len(examples)}, rows

    def predict(self, model: Any, examples: Sequence[GenerationExample], monitor: Monitor) -> Rows:
        """A generated text for each example."""
        monitor.stage("Generating text", batches_to_generate(examples))
        texts = generate_texts(model, self.encoder, examples, self.max_new_tokens, monitor.step)
        return [generated_row(example, text) for example, text in zip(examples, texts, strict=True)]

    def card_parts(self, base: dict[str, Any], metrics: Metrics) -> CardParts:
        """How to generate, and losses."""
        return text_parts(self.task, self.max_new_tokens, metrics)


def _losses(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    return completion_losses(logits[0] if isinstance(logits, tuple) else logits, labels)


def generated_row(example: GenerationExample, text: str) -> dict[str, Any]:
    """One entry of predictions.jsonl: the prompt, its completion if it is known, and the generated text."""
    prompt: Any = example.prompt
    if not isinstance(prompt, str):
        prompt = [dataclasses.asdict(turn) for turn in prompt]
    completion = {} if example.completion is None else {"completion": example.completion}
    return {"prompt": prompt, **completion, "generated": text}


def _compare(rows: Rows) -> Metrics:
    return text_metrics([row["generated"] for row in rows], [row["completion"] for row in rows])
