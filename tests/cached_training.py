"""Short trainings for the tests of the activation cache, and what is recorded of them."""

import torch
from transformers import TrainerCallback


def build_examples(size, causal=False):
    noise = torch.Generator().manual_seed(5)
    rows = []
    for index in range(size):
        tokens = torch.randint(5, 100, (3 + index % 6,), generator=noise).tolist()
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": index % 3})
    return rows


class Losses(TrainerCallback):
    """Keeps the training loss of every step."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs[name] for name in ("loss", "eval_loss") if name in logs]


class BlocksRun(TrainerCallback):
    """Counts, epoch by epoch, how often the lowest block ran."""

    def __init__(self, network):
        self.by_epoch = [0]
        network.base_model.backbone.layers[0].base_layer.register_forward_hook(self.count)

    def count(self, *args):
        self.by_epoch[-1] += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        self.by_epoch.append(0)
