"""The plan says whether and where states are cached, and wrong settings are refused."""

import pytest
import torch
from peft import get_peft_model
from torch.utils.data import IterableDataset
from transformers import (
    TrainingArguments,
)

from cached_training import build_examples
from sptune import SPTTrainer
from sptune.errors import InputError
from sptune.training.caching.cache_settings import ActivationCacheSettings


def test_a_shorter_number_format_takes_less(build_trainer, bert):
    exact, short = (build_trainer(bert, ActivationCacheSettings(dtype=dtype)) for dtype in (None, "bfloat16"))
    assert short.plan_activation_cache().size * 2 == exact.plan_activation_cache().size
    for trainer in (exact, short):
        trainer.train()
    torch.testing.assert_close(torch.tensor(short.losses.values), torch.tensor(exact.losses.values), rtol=0.05, atol=0)


def test_the_plan_says_how_much_and_where(build_trainer, bert, tmp_path):
    tokens = sum(len(example["input_ids"]) for example in build_examples(16) + build_examples(16)[:6])
    plan = build_trainer(bert, ActivationCacheSettings(memory=0)).plan_activation_cache()
    assert plan.size == tokens * 32 * 4
    assert "layers 0 to 1 run once for each text" in str(plan)
    assert str(tmp_path) in str(plan)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"prompt_layers": [0, 2]}, "layer 0"), ({"activation_cache": None}, "turned off")],
    ids=str,
)
def test_why_there_is_no_cache(build_trainer, bert, options, reason):
    trainer = build_trainer(bert, options.pop("activation_cache", ActivationCacheSettings()), **options)
    assert reason in str(trainer.plan_activation_cache())


@pytest.mark.parametrize("wrong", [{"memory": -1}, {"dtype": "int8"}], ids=str)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        ActivationCacheSettings(**wrong)


def test_a_stream_with_a_length_is_no_table(build_trainer, bert):
    class Stream(IterableDataset):
        def __len__(self):
            return 4

        def __iter__(self):
            return iter(build_examples(4))

    trainer = build_trainer(bert, ActivationCacheSettings(), examples=Stream())
    assert "length and index" in str(trainer.plan_activation_cache())
    trainer.train()
    assert trainer.losses.values


@pytest.mark.parametrize(
    ("options", "config", "reason"),
    [
        ({"neftune_noise_alpha": 5.0}, {}, "noise to the embeddings"),
        ({}, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "rotary positions"),
    ],
    ids=["neftune", "dynamic rope"],
)
def test_what_changes_states_with_each_batch_is_not_cached(
    build_backbone, build_config, llama, tmp_path, options, config, reason
):
    if config and not hasattr(build_backbone(llama).config, "rope_parameters"):
        config = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    network = get_peft_model(
        build_backbone(llama, "classifier", **config), build_config(llama, "classifier", placement="add")
    )
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)
    trainer = SPTTrainer(network, args, train_dataset=build_examples(4))
    assert reason in str(trainer.plan_activation_cache())
