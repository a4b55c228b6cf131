"""Held-out losses of variants of a supernet: exact, and with shared states only where those are exact."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import T5Config, T5ForConditionalGeneration, default_data_collator

from sptune import SPTConfig, discretize
from sptune.errors import InputError
from sptune.search import SearchConfig, SPTSearchTrainer
from sptune.search.searchers.fair import FairTrainer

LOADERS = [
    {},
    {"dataloader_drop_last": True, "per_device_eval_batch_size": 8},
    {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
]


@pytest.mark.parametrize("args", LOADERS, ids=str)
def test_held_out_losses_are_means_over_the_architecture_split(build_trainer, plain_loss, randomize, args):
    trainer = build_trainer(SPTSearchTrainer, "darts", args=args)
    network = trainer.model.eval()
    randomize(network)
    held_out = [trainer.architecture_dataset[index] for index in range(len(trainer.architecture_dataset))]
    expected = []
    for layers in ([1], [0, 3]):
        final = discretize(copy.deepcopy(network), layers, warm_start=True).eval()
        expected.append(plain_loss(final, held_out))
    settings = [lambda layers=layers: trainer.tuner.prompting_at(layers) for layers in ([1], [0, 3])]
    assert trainer.held_out.losses(settings) == pytest.approx(expected, abs=1e-5)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    parts = [trainer.held_out.losses(settings, part, 3) for part in range(3)]
    assert [sum(losses) / 3 for losses in zip(*parts, strict=True)] == pytest.approx(expected, abs=1e-5)
    assert parts[0] != pytest.approx(parts[1], abs=1e-4)


def test_held_out_examples_without_labels_are_refused(build_trainer, examples):
    for example in examples:
        example["labels"] = -100
    trainer = build_trainer(FairTrainer, "fair")
    with pytest.raises(InputError, match="have no labels"):
        trainer.held_out.losses([lambda: trainer.tuner.prompting_at([1])])


def test_layers_below_the_prompts_run_once_for_all_networks_of_a_batch(build_trainer):
    trainer = build_trainer(FairTrainer, "fair")
    calls = [0] * 4
    for index, block in enumerate(trainer.tuner.backbone.layers):

        def count(module, args, output, index=index):
            calls[index] += 1

        block.base_layer.register_forward_hook(count)
    variants = [lambda layer=layer: trainer.tuner.prompting_at([layer]) for layer in range(4)]
    trainer.held_out.losses(variants)  # the first batch is used for a trial, too
    calls[:] = [0] * 4
    trainer.held_out.losses(variants)
    batches = len(trainer.get_eval_dataloader(trainer.architecture_dataset))
    assert [count // batches for count in calls] == [2, 3, 4, 4], "once without prompts, and once for each below it"


def test_states_are_not_shared_where_blocks_pass_on_more_than_those(build_args):
    """T5's first layer makes the position bias of all layers."""
    torch.manual_seed(0)
    shape = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**shape, dropout_rate=0.0, decoder_start_token_id=0))
    config = SPTConfig(task_type="SEQ_2_SEQ_LM", prompt_layers="search", bottleneck_dim=4, layers_path="encoder.block")
    network = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    tokens = torch.randint(5, 100, (16, 6)).tolist()
    examples = [{"input_ids": row, "attention_mask": [1] * 6, "labels": row[::-1]} for row in tokens]
    trainer = SPTSearchTrainer(
        network, build_args(), train_dataset=examples, search=SearchConfig("darts"), data_collator=default_data_collator
    )
    variants = [lambda layer=layer: trainer.tuner.prompting_at([layer]) for layer in range(4)]
    together = trainer.held_out.losses(variants)
    assert together == pytest.approx([trainer.held_out.losses([one])[0] for one in variants], abs=1e-5)
    assert len({round(loss, 3) for loss in together}) == 4
