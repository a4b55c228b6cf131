"""A short training with the activation cache, run by a test in two processes; process 0 writes the losses."""

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments

from sptune import SPTConfig, SPTTrainer
from sptune.runs.processes import leave_processes
from sptune.tasks import PaddingCollator
from sptune.training.caching.cache_settings import ActivationCacheSettings


class Losses(TrainerCallback):
    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


def main(output: str, cache: str, folder: str) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.2, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    network = get_peft_model(
        BertForSequenceClassification(config),
        SPTConfig(task_type="SEQ_CLS", prompt_layers=[2], bottleneck_dim=4),
    )
    tokens = torch.randint(5, 100, (12, 6), generator=torch.Generator().manual_seed(5)).tolist()
    examples = [{"input_ids": row, "attention_mask": [1] * 6, "labels": n % 3} for n, row in enumerate(tokens)]
    args = TrainingArguments(
        folder, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True,
        num_train_epochs=3, per_device_train_batch_size=3, learning_rate=1e-3,
    )  # fmt: skip
    losses = Losses()
    trainer = SPTTrainer(
        network, args, train_dataset=examples, data_collator=PaddingCollator(0, left=False), callbacks=[losses],
        activation_cache=None if cache == "none" else ActivationCacheSettings(),
    )  # fmt: skip
    if cache == "full disk" and trainer.is_world_process_zero():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if trainer.is_world_process_zero():
        Path(output).write_text(json.dumps([float(value) for value in losses.values]))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as own:
        main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else own)
    leave_processes()
