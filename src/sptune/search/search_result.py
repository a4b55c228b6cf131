"""`SearchResult`: what a search found, how the gates got there, and what the final network is made from."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.runs import output_folder as outputs
from sptune.search.plots import plot_search
from sptune.search.search_config import SearchConfig


@dataclass
class SearchResult:
    """The outcome of `search_prompt_layers`.

    Args:
        prompt_layers: the layers chosen, ascending.
        candidate_layers: the layers that could have been chosen, ascending.
        scores: what the layers were chosen by, one for each candidate, the larger the better: gates, or what the
            selection measured; where nothing was trained 1 and 0, of "random" the numbers drawn.
        gates: final gate value of each candidate; None where no gates were trained.
        history: one entry for each step, in order, with "step" (from 1). Where gates were trained: "gates" (values
            after the step), "weight_loss", "gate_loss" and "consistency" of the step (None where there was none). Where
            discrete networks shared their weights: "loss". Where they had their own: "losses", for each candidate that
            of the sets with it (None where there were none). Empty for a searcher that trains nothing.
        config: configuration of the final network.
        search: how the search was done.
        seconds: time the search took.
        steps: optimisation steps it took.
        remarks: what there is to know about the choice, such as that no layers did better than evenly spaced ones.
    """

    prompt_layers: list[int]
    candidate_layers: list[int]
    scores: list[float]
    gates: list[float] | None
    history: list[dict[str, Any]]
    config: SPTConfig
    search: SearchConfig
    seconds: float
    steps: int
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**values, "config": self.config.to_dict(), "search": self.search.to_dict()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON; the file appears whole or not at all."""
        outputs.write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Read a result that `save` wrote.

        Raises:
            InputError: the file is missing, or not a search result.
        """
        values = outputs.read_json(Path(path))
        names = [one.name for one in fields(cls)]
        required = [one.name for one in fields(cls) if one.default_factory is MISSING]
        missing = [name for name in required if not isinstance(values, dict) or name not in values]
        if missing:
            raise InputError(f"{path}: not a search result, {missing[0]!r} is missing; it holds {', '.join(names)}.")
        known = {name: values[name] for name in names if name in values}
        config = {name: value for name, value in values["config"].items() if name != "peft_type"}
        return cls(**{**known, "config": SPTConfig(**config), "search": SearchConfig.from_dict(values["search"])})

    @property
    def score_name(self) -> str:
        """What `scores` are, in words."""
        if not self.history:
            return "chosen"
        if self.search.reading == "gates":
            return "final gate"
        if self.search.reading == "perturbation":
            return "rise of the held-out loss without it"
        in_race = self.search.reading in ("sets", "greedy")
        return f"minus the held-out loss{' in the first round' if in_race else ''}"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw what was trained over time, and the scores with the chosen layers marked.

        Args:
            path: where to write the picture, as PNG or SVG; None not to write it.

        Raises:
            InputError: nothing was trained, so there is no history to draw, or the path ends otherwise.
        """
        if not self.history:
            raise InputError(
                f"searcher={self.search.searcher!r} chose the prompt layers {self.prompt_layers} without training a "
                "search network, so there is nothing to draw."
            )
        return plot_search(
            self.history, self.candidate_layers, self.prompt_layers, self.scores, self.score_name, path=path
        )
