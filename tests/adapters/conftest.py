"""Backbones of the tests of adapters."""

from tiny_runs import causal_lm, masked_lm  # noqa: F401
