"""Backbones and data of the tests of runs."""

from tiny_runs import causal_lm, data, deep_lm, masked_lm, options  # noqa: F401
