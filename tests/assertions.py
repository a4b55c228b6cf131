"""Assertions on tensors that several test files share."""

from collections.abc import Mapping
from typing import Any

import torch


def assert_same(actual: Any, expected: Any) -> None:
    """Two computations of the same numbers agree up to rounding in float32."""
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def assert_identical(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    """Named tensors are equal in every bit."""
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
