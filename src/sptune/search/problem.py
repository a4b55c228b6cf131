"""`SearchProblem`, the input of a searcher, and `Findings`, its output."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from sptune.modeling.model import SPTModel
from sptune.search.held_out import check_finite
from sptune.search.search_config import SearchConfig
from sptune.search.selection_criteria import CRITERIA
from sptune.search.supernet_trainer import SupernetTrainer


@dataclass
class Findings:
    """The layers that a searcher found, and how.

    Attributes:
        scores: one for each candidate layer, the larger the better.
        gates: the trained gates, if there are any.
        prompt_layers: the layers, if they were chosen as a set and not by their scores.
        history: one entry for each step, as in `SearchResult`.
        steps: number of optimizer steps.
        seconds: time of the search, including the time before it was resumed.
        remarks: messages about the choice.
    """

    scores: list[float]
    gates: list[float] | None = None
    prompt_layers: list[int] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SearchProblem:
    """A supernet, data, and how to search.

    Attributes:
        network: the supernet.
        train_dataset: all the training data.
        args: training arguments of the search.
        search: how to search; one of `num_prompt_layers` and `threshold` is set.
        options: further arguments of `SPTTrainer` (class scores, collator, callbacks, head learning rate, cache).
        resume: a checkpoint to resume from, as in `transformers.Trainer.train`.
        tell: receives messages, such as how long the search will take.
    """

    network: PeftModel
    train_dataset: Dataset
    args: TrainingArguments
    search: SearchConfig
    options: dict[str, Any]
    resume: str | bool | None
    tell: Callable[[str], None]

    @property
    def tuner(self) -> SPTModel:
        """The network's prompts."""
        tuner = self.network.base_model
        assert isinstance(tuner, SPTModel)
        return tuner

    @property
    def candidates(self) -> list[int]:
        """The layers to choose from."""
        return self.tuner.generator_layers

    def train_supernet(self, trainer_class: type[SupernetTrainer], **own: Any) -> Findings:
        """Train the supernet, then select layers by the criterion of the configuration.

        Args:
            trainer_class: the trainer of the supernet.
            **own: further arguments of it.
        """
        options = {**self.options, **own}
        # The searchers read the architecture split themselves, so there is no data to evaluate on.
        args = copy.copy(self.args)
        args.eval_strategy, args.eval_on_start, args.load_best_model_at_end = IntervalStrategy.NO, False, False
        trainer = trainer_class(self.network, args, train_dataset=self.train_dataset, search=self.search, **options)
        self.tell(str(trainer.plan_activation_cache()))
        if not self.resume:
            self.tell(f"Training the supernet will take about {in_words(trainer.estimate_seconds())}.")
        trainer.train(resume_from_checkpoint=self.resume)
        check_finite(trainer.gates() or [])
        started = time.monotonic()
        scores, prompt_layers = CRITERIA[self.search.criterion or ""](trainer)
        return Findings(
            scores=scores,
            gates=trainer.gates(),
            prompt_layers=prompt_layers,
            history=trainer.history.entries,
            steps=trainer.state.global_step,
            seconds=trainer.history.seconds + time.monotonic() - started,
            remarks=trainer.remarks,
        )


def in_words(seconds: float) -> str:
    """A time for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
