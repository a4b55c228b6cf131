"""Backbone and data of the campaign, and where its figures go."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reliability.campaign import SCALE
from tiny_runs import data, masked_lm  # noqa: F401


@pytest.fixture
def record() -> Callable[..., None]:
    """``record(part, **figures)``: adds a row to the file that SPTUNE_CAMPAIGN_OUTPUT names, if it does."""

    def add(part: str, **figures: Any) -> None:
        output = os.environ.get("SPTUNE_CAMPAIGN_OUTPUT")
        if output:
            with Path(output).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"part": part, "scale": SCALE, **figures}) + "\n")

    return add
