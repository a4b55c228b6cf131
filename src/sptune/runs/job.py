"""`Job`: a run whose backbone is loaded and whose data are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, set_seed

from sptune.modeling.backbones import find_backbone
from sptune.modeling.loading import CAUSAL_LM, CLASSIFIER, HEADS, load_backbone
from sptune.runs.plan import Plan
from sptune.runs.processes import processes
from sptune.runs.score_evaluation import by_length

SPLITS = ("train", "validation", "test")

Encoded = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A plan with its frozen backbone and encoded data.

    Attributes:
        absent: modules that the checkpoint did not bring, which must be trained and saved.
        encoded: splits by name; validation and test by length, so that batches hold little padding.
        test_order: where each example of the encoded test data stands in the plan's.
    """

    plan: Plan
    backbone: PreTrainedModel
    absent: list[str]
    encoded: Encoded
    test_order: np.ndarray

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return processes().is_main_process

    @property
    def untrained_modules(self) -> list[str]:
        """Modules that must be trained besides the heads, which PEFT trains and saves on its own."""
        return [name for name in self.absent if name not in HEADS]

    @property
    def head_modules(self) -> set[str]:
        """Names of modules that every method trains besides its own parameters, where the backbone has them."""
        return {*HEADS, *(name.split(".")[-1] for name in self.absent)}

    @property
    def peft_task_type(self) -> str | None:
        """PEFT's name for the kind of head."""
        return {CLASSIFIER: "SEQ_CLS", CAUSAL_LM: "CAUSAL_LM"}.get(self.plan.spec.head)


def load(plan: Plan) -> Job:
    """Load what a plan names.

    Raises:
        InputError: an example does not fit the maximum length, or the backbone cannot be loaded or take prompts.
    """
    with plan.clock.stage("encode"):
        plan.monitor.stage("Turning text into tokens")
        encoded = {name: plan.encoder.encode(getattr(plan.splits, name)) for name in SPLITS}
        orders = {name: by_length(encoded[name]) for name in SPLITS[1:]}
        encoded |= {name: encoded[name].select(order) for name, order in orders.items()}
    with plan.clock.stage("load"):
        plan.monitor.stage(f"Loading {plan.spec.source.model}")
        set_seed(plan.options.seed)
        backbone, absent = load_backbone(plan.spec, plan.tokenizer)
        find_backbone(backbone, plan.options.prompts.layers_path, plan.options.prompts.placement)
    return Job(plan, backbone, absent, encoded, orders["test"])
