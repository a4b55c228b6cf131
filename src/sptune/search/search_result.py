"""`SearchResult`: the prompt layers that a search found, its history, and the configuration of the final network."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sptune.config import SPTConfig
from sptune.errors import InputError
from sptune.search.search_config import SearchConfig
from sptune.whole_files import expanded, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class SearchResult:
    """The outcome of `search_prompt_layers`.

    Args:
        prompt_layers: the layers chosen, ascending.
        candidate_layers: the layers that could have been chosen, ascending.
        scores: one for each candidate, the larger the better: gates, or the values of the selection criterion; 1 and 0
            if nothing was trained; random numbers with searcher="random".
        gates: final gate value of each candidate; None if no gates were trained.
        history: one entry for each step, in order, with "step" (from 1). With trained gates: "gates" (values after the
            step), and the losses of the step, None where there was none: "weight_loss" (weight split), "gate_loss"
            (architecture split) and "consistency". With discrete networks that share weights: "loss". With discrete
            networks that have their own weights: "losses", the lowest held-out loss of the sets with each candidate
            (None without such a set). Empty if nothing was trained.
        config: configuration of the final network.
        search: how the search was done.
        seconds: time of the search.
        steps: number of optimizer steps.
        remarks: messages about the choice, such as that no layers beat evenly spaced ones.
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
        """All of it, ready for JSON; scores and losses that are infinite or not a number are None."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        measured = {name: _finite(values[name]) for name in ("scores", "gates", "history")}
        return {**values, **measured, "config": self.config.to_dict(), "search": self.search.to_dict()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON; the file appears whole or not at all."""
        write_json(expanded(path), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SearchResult:
        """Read a result that `save` wrote.

        Raises:
            InputError: the file is missing, or not a search result.
        """
        values = read_json(expanded(path))
        names = [one.name for one in fields(cls)]
        required = [one.name for one in fields(cls) if one.default_factory is MISSING]
        missing = [name for name in required if not isinstance(values, dict) or name not in values]
        if missing:
            raise InputError(f"{path}: not a search result, {missing[0]!r} is missing; it holds {', '.join(names)}.")
        known = {name: values[name] for name in names if name in values}
        # The worst of all: of networks that diverged or were not trained.
        known["scores"] = [-math.inf if score is None else score for score in known["scores"]]
        config = {name: value for name, value in values["config"].items() if name != "peft_type"}
        return cls(**{**known, "config": SPTConfig(**config), "search": SearchConfig.from_dict(values["search"])})

    @property
    def score_name(self) -> str:
        """The meaning of `scores`, for pictures."""
        if not self.history:
            return "chosen"
        if self.search.criterion == "gates":
            return "final gate"
        if self.search.criterion == "perturbation":
            return "rise of the held-out loss without it"
        in_race = self.search.criterion in ("sets", "greedy")
        return f"minus the held-out loss{' in the first round' if in_race else ''}"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draw gates or losses over time, and the scores with the chosen layers marked.

        Args:
            path: where to write the picture, as PNG or SVG; None not to write it.

        Raises:
            InputError: nothing was trained, so there is no history to draw, or the path ends otherwise.
        """
        if not self.history:
            raise InputError(
                f"searcher={self.search.searcher!r} chose the prompt layers {self.prompt_layers} without training, "
                "so there is nothing to draw."
            )
        from sptune.search.plots import plot_search  # matplotlib is slow to import

        return plot_search(
            self.history, self.candidate_layers, self.prompt_layers, self.scores, self.score_name, path=path
        )


def _finite(value: Any) -> Any:
    """The same lists and mappings with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
