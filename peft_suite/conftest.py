"""Makes PEFT's tests importable as `peft_tests`, builds the models they name and marks the failures expected of SPT."""

from __future__ import annotations

import os
import re
import sys
import traceback

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES="")

import pytest
import torch
import transformers

import sptune  # noqa: F401 (registers SPT)
from expected_failures import EXPECTED_FAILURES
from fetch_peft_tests import CACHE, peft_tests
from tiny_models import build

MODELS = CACHE / "models"
sys.path.insert(0, str(peft_tests()))
pytest.register_assert_rewrite("peft_tests")
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        build(MODELS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for expected in EXPECTED_FAILURES:
            if re.search(expected.tests, item.nodeid):
                raises = pytest.RaisesExc(check=lambda error, failure=expected.failure: _tells(error, failure))
                item.add_marker(pytest.mark.xfail(reason=expected.reason, raises=raises, strict=True))


def _tells(error: BaseException, pattern: str) -> bool:
    """Whether the pattern is found in the message, or in the line of the test that failed."""
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return re.search(pattern, f"{error}\n{line}") is not None


@pytest.fixture(scope="session", autouse=True)
def among_the_models():
    """Names of models are looked for in the working folder before the hub."""
    before = os.getcwd()
    os.chdir(MODELS)
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
