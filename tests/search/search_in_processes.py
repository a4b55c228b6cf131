"""Run by a test, alone or in several processes: short searches on a tiny model; process 0 writes what they did."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))

from conftest import build_examples, pad_batch
from sptune import SPTConfig
from sptune.runs.processes import leave_processes, processes
from sptune.search import SearchConfig, SPTSearchTrainer
from sptune.search.gate_sampler import GateSampler
from sptune.search.searchers.fair import FairTrainer
from sptune.search.searchers.gumbel import ConcreteGates
from sptune.search.searchers.sampled import SampledSets
from sptune.search.selection_criteria import greedily

TRAINERS = {
    "fair": (FairTrainer, None),
    "spt_darts": (SPTSearchTrainer, GateSampler),
    "gumbel": (SPTSearchTrainer, ConcreteGates),
    "sampled": (SPTSearchTrainer, SampledSets),
}


class GateGradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [alpha.grad for alpha in model.base_model.gate_parameters().values()]
        self.steps.append([0.0 if gradient is None else gradient.item() for gradient in gradients])


def search(searcher: str, batch_size: int) -> dict[str, Any]:
    """What a search did in six steps, of two micro-batches each."""
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
    trainer_class, gates = TRAINERS[searcher]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_steps=6,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            max_grad_norm=0.0,
        )
        trainer = trainer_class(
            network,
            args,
            # The last step of an epoch has one micro-batch of four examples and one of three.
            train_dataset=build_examples(46),
            search=SearchConfig(searcher=searcher, num_prompt_layers=1, **({"warmup_ratio": 0.34} if gates else {})),
            data_collator=pad_batch,
            callbacks=[recorder],
            **({} if gates in (None, GateSampler) else {"gate_sampler": gates}),
        )
        trainer.train()
        # Five batches for one process; three and two for each of two.
        trainer.architecture_dataset = build_examples(70)
        scores, _ = greedily(trainer)
    losses = [entry.get("weight_loss") or entry["loss"] for entry in trainer.history.entries]
    return {"gate_gradients": recorder.steps, "losses": losses, "scores": scores}


if __name__ == "__main__":
    output, batch_size = sys.argv[1:]
    results = {searcher: search(searcher, int(batch_size)) for searcher in TRAINERS}
    if processes().is_main_process:
        torch.save(results, output)
    leave_processes()
