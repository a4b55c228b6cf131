"""Estimates memory, traffic and arithmetic of prompts on backbones of 7 and 70 billion weights; nothing is measured.

    python benchmarks/scale_on_paper.py

Every number follows from the assumptions below by the formulas of `estimate`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

# Assumptions: how a run is set up. Prompts are the defaults of placement="add".
TEXTS, LENGTH, BATCH, PROCESSES = 10_000, 512, 16, 8
PROMPT_LAYERS, BOTTLENECK = 4, 4
# Bytes of a number: bfloat16 weights and states; 4-bit weights with one 32-bit scale for 64 of them; float32 training.
BFLOAT16, FOUR_BITS, FLOAT32 = 2.0, 0.5 + 4 / 64, 4.0
ASSUMPTIONS = (
    "the shapes are those of Llama 2: layers, hidden and feed-forward size, heads of 128, 32,000 tokens",
    f"{PROMPT_LAYERS} prompt layers from the middle on, bottleneck_dim={BOTTLENECK}; AdamW keeps gradient, two moments "
    "and weights in float32",
    "frozen weights are in bfloat16 (2 bytes), or in 4 bits with a 32-bit scale for 64 weights (0.5625 bytes)",
    f"{TEXTS:,} texts of {LENGTH} tokens; cached states are in bfloat16",
    f"a step has {BATCH} texts; {PROCESSES} processes, each with the whole model (DDP) or an eighth of it (FSDP)",
    "an all-reduce or all-gather moves (P - 1) / P of the bytes into each process, an all-reduce twice that",
    "arithmetic is 2 operations a weight and token in a forward pass, and 2 in a backward pass through frozen weights; "
    "attention between tokens is left out",
)


@dataclass(frozen=True)
class Backbone:
    """A causal language model's shape."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    key_value_heads: int

    @property
    def layer_weights(self) -> int:
        """Weights of a block: attention, gated feed-forward network and two norms."""
        attention = 2 * self.hidden * (self.hidden + 128 * self.key_value_heads)
        return attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden

    @property
    def weights(self) -> int:
        """Weights of all blocks, of the embeddings and of the language-model head."""
        return self.layers * self.layer_weights + 2 * 32_000 * self.hidden


BACKBONES = (Backbone("7B", 32, 4096, 11008, 32), Backbone("70B", 80, 8192, 28672, 8))


def estimate(backbone: Backbone) -> dict[str, float]:
    """Gigabytes, and operations of a step in 10^12, of a backbone under the assumptions above."""
    adapter = PROMPT_LAYERS * (2 * backbone.hidden * BOTTLENECK + BOTTLENECK + backbone.hidden)
    states = backbone.hidden * BFLOAT16
    share = (PROCESSES - 1) / PROCESSES
    upper = backbone.layer_weights * (backbone.layers // 2) * BATCH * LENGTH * 2
    return {
        "weights, 10^9": backbone.weights / 1e9,
        "frozen weights, bfloat16": backbone.weights * BFLOAT16 / 1e9,
        "frozen weights, 4 bits": backbone.weights * FOUR_BITS / 1e9,
        "prompts with gradient and AdamW": adapter * 4 * FLOAT32 / 1e9,
        "cached states of a text": LENGTH * states / 1e9,
        "cached states of all texts": TEXTS * LENGTH * states / 1e9,
        "read from the cache in a step": BATCH * LENGTH * states / 1e9,
        "DDP, into a process in a step": 2 * share * adapter * FLOAT32 / 1e9,
        "FSDP, into a process in a step": 2 * share * backbone.weights * BFLOAT16 / 1e9,
        "10^12 operations, LoRA in all layers": 4 * upper / 1e12,
        "10^12 operations, prompts": 3 * upper / 1e12,
        "10^12 operations, prompts, cached": 2 * upper / 1e12,
    }


def main() -> None:
    """Print the assumptions and the estimates."""
    estimates = {one.name: {**dataclasses.asdict(one), **estimate(one)} for one in BACKBONES}
    print(json.dumps({"assumptions": ASSUMPTIONS, "estimates": estimates}, indent=2))


if __name__ == "__main__":
    main()
