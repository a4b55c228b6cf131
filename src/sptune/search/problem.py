"""What a searcher is given, and what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from torch.utils.data import Dataset
from transformers import TrainingArguments

from sptune.modeling.model import SPTModel
from sptune.search.search_config import SearchConfig
from sptune.search.selection_criteria import READINGS
from sptune.search.supernet_trainer import SearchTrainer, check_finite


@dataclass
class Findings:
    """What a searcher found.

    Attributes:
        scores: one for each candidate layer, the larger the better.
        gates: the gates behind the scores, where there are any.
        prompt_layers: the layers, where they were chosen as a set and not by their scores.
        history: one entry for each step, as in `SearchResult`.
        steps: optimisation steps taken.
        seconds: time spent, that before a resumption included.
        remarks: what there is to know about the choice.
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
    """A search network, data, and how to search.

    Attributes:
        network: the search network.
        train_dataset: all the training data.
        args: training arguments of the search.
        search: how to search; one of `num_prompt_layers` and `threshold` is set.
        options: what `SPTTrainer` takes besides (class scores, collator, callbacks, head learning rate, cache).
        resume: a checkpoint to resume from, as in `transformers.Trainer.train`.
        tell: told what the search will cost.
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
        return self.tuner.candidate_layers

    def train(self, trainer_class: type[SearchTrainer]) -> Findings:
        """Train the search network, then read it as `search.reading` says."""
        trainer = trainer_class(
            self.network, self.args, train_dataset=self.train_dataset, search=self.search, **self.options
        )
        self.tell(str(trainer.plan_activation_cache()))
        if not self.resume:
            self.tell(f"Training the search network will take about {in_words(trainer.estimate_seconds())}.")
        trainer.train(resume_from_checkpoint=self.resume)
        check_finite(trainer.gates() or [])
        started = time.monotonic()
        scores, prompt_layers = READINGS[self.search.reading or ""](trainer)
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
