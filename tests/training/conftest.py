"""A trainer of tiny classifiers for the tests of the activation cache."""

import pytest
import torch
from peft import get_peft_model
from transformers import TrainingArguments

from cached_training import Losses, build_examples
from sptune import SPTTrainer
from sptune.tasks import PaddingCollator


@pytest.fixture
def build_trainer(build_backbone, build_config, tmp_path):
    """``build_trainer(case, activation_cache, **options)``: on a tiny classifier with prompts at layers 2 and 3."""

    def build(
        case, activation_cache, *, examples=None, head="classifier", prompt_layers=(2, 3), trainer=None, **options
    ):
        torch.manual_seed(3)
        network = get_peft_model(build_backbone(case, head), build_config(case, head, prompt_layers=[*prompt_layers]))
        usual = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
        silent = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **{**usual, **silent, **options})
        examples = build_examples(16) if examples is None else examples
        losses = Losses()
        made = SPTTrainer(
            network, args, train_dataset=examples, eval_dataset=examples[:6] if isinstance(examples, list) else None,
            data_collator=PaddingCollator(0, left=False), callbacks=[losses], activation_cache=activation_cache,
            **(trainer or {}),
        )  # fmt: skip
        made.losses = losses
        return made

    return build
