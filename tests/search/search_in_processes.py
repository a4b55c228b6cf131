"""Run by a test, alone or under torch.distributed.run: a short search on a tiny model; process 0 writes what it did."""

import sys
import tempfile
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))

from conftest import build_examples, pad_batch
from sptune import SPTConfig
from sptune.runs.progress import leave_processes
from sptune.search import SearchConfig, SPTSearchTrainer
from sptune.search.searchers.fair import FairTrainer
from sptune.search.selection_criteria import greedily


class GateGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [alpha.grad for alpha in model.base_model.gate_parameters().values()]
        self.steps.append([0.0 if gradient is None else gradient.item() for gradient in gradients])


def main(output: str, batch_size: str, searcher: str) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.2,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    spt = SPTConfig(task_type="SEQ_CLS", placement="prepend", num_virtual_tokens=2, bottleneck_dim=4)
    network = get_peft_model(BertForSequenceClassification(config), spt)
    recorder = GateGradients()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_steps=3,
            per_device_train_batch_size=int(batch_size),
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            max_grad_norm=0.0,
        )
        trainer_class, settings = FairTrainer, {}
        if searcher != "fair":
            trainer_class, settings = SPTSearchTrainer, {"mask_probability": 0.0, "warmup_ratio": 0.34}
        trainer = trainer_class(
            network,
            args,
            train_dataset=build_examples(32),
            search=SearchConfig(searcher=searcher, num_prompt_layers=1, **settings),
            data_collator=pad_batch,
            callbacks=[recorder],
        )
        trainer.train()
        # Five batches for one process; three and two for each of two.
        trainer.architecture_dataset = build_examples(70)
        scores, _ = greedily(trainer)
        if trainer.is_world_process_zero():
            losses = [entry.get("weight_loss") or entry["loss"] for entry in trainer.history.entries]
            torch.save({"gate_gradients": recorder.steps, "losses": losses, "scores": scores}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_processes()
