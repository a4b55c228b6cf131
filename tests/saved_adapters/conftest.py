"""Backbones, data and options of the tests of saved adapters."""

from tiny_runs import causal_lm, data, masked_lm, options  # noqa: F401
