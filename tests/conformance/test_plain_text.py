"""A causal model trained on plain text, with labels on every token, learns, and one such row does not harm others."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

DEEP = 24
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
READING = ["npg", "appg", "mppg", "attention"]


@pytest.fixture
def build_deep(build_backbone, build_config, family_case):
    """``build_deep(family, **options)``: a network of 24 layers, prompts as they are at first."""

    def build(family, **options):
        case = family_case(family)
        backbone = build_backbone(case, num_hidden_layers=DEEP)
        return get_peft_model(backbone, build_config(case, **{"prompt_layers": [8], **options}))

    return build


def _gradients(network, batch, labels):
    network.zero_grad()
    network(**batch, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("generator", READING)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns_from_plain_text(build_deep, build_batch, family_case, family, generator, residual):
    network = build_deep(family, generator=generator, residual=residual).train()
    batch = build_batch(family_case(family))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = network(**batch, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
        assert norm > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in network.named_parameters():
        if name in before and "down" not in name and "queries" not in name:  # a dead unit may stay as it is
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("generator", READING)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_nothing_to_read_does_not_harm_others(build_deep, build_batch, family_case, family, generator):
    network, case = build_deep(family, generator=generator), family_case(family)
    batch = build_batch(case, (8, 8))
    labels = batch["input_ids"].clone()
    labels[0, :5] = -100
    both = _gradients(network, batch, labels)
    assert all(gradient.isfinite().all() for gradient in both.values())
    alone = _gradients(network, {name: value[:1] for name, value in batch.items()}, labels[:1])
    beside = _gradients(network, batch, labels.index_fill(0, torch.tensor([1]), -100))
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-6)


def test_a_zero_bottleneck_makes_no_zero_prompt(build_deep, build_batch, family_case):
    network = build_deep("llama", generator="npg")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "down.bias" in name:
                parameter.fill_(-1e3)  # no unit is active
    batch = build_batch(family_case("llama"))
    assert all(g.isfinite().all() for g in _gradients(network, batch, batch["input_ids"]).values())


@pytest.mark.parametrize("visibility", ["gated", "always"])
def test_closed_gates_have_finite_gradients(build_deep, build_batch, family_case, visibility):
    case = family_case("llama")
    network = build_deep("llama", prompt_layers="search", candidate_layers=[4, 8, 12], visibility=visibility)
    batch = build_batch(case)
    gates = torch.tensor([[0.0, 0.0, 0.5]], requires_grad=True)
    with network.base_model.gating(gates):
        network(**batch, labels=batch["input_ids"]).loss.backward()
    assert gates.grad.isfinite().all()
    assert gates.grad.abs().max() < 1e3


def _warnings(caplog):
    return [record for record in caplog.records if "nothing to read" in record.getMessage()]


@pytest.mark.parametrize("hidden", [0, 1], ids=["no label is masked", "the first is masked"])
def test_training_that_reads_less_than_generation_warns_once(build_network, build_batch, llama, caplog, hidden):
    network, batch = build_network(llama).train(), build_batch(llama, (8, 8))
    labels = batch["input_ids"].clone()
    labels[:, :hidden] = -100
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            network(**batch, labels=labels)
    (warning,) = _warnings(caplog)
    for remedy in ("-100", "source_mask", "generator='static'", "placement='add'"):
        assert remedy in warning.getMessage()


@pytest.mark.parametrize("options", [{"generator": "static"}, {"labeled": 4}, {"evaluating": True}], ids=str)
def test_nothing_to_warn_of(build_network, build_batch, llama, caplog, options):
    labeled, evaluating = options.pop("labeled", 0), options.pop("evaluating", False)
    network, batch = build_network(llama, **options).train(not evaluating), build_batch(llama, (8, 8))
    labels = batch["input_ids"].clone()
    labels[:, :labeled] = -100
    with caplog.at_level(logging.WARNING):
        network(**batch, labels=labels)
    assert not _warnings(caplog)


def test_trls_trainer_on_plain_text(build_deep, tmp_path, caplog):
    lines = ["the plot is a mess", "never ends and begins again", "joy that never ends"]
    words = ["<pad>", "<s>", "</s>", *dict.fromkeys(" ".join(lines).split())]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    network = build_deep("llama")
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    options = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    arguments = SFTConfig(
        str(tmp_path), max_steps=12, learning_rate=1e-2, logging_steps=1, gradient_checkpointing=False, **options
    )
    texts = Dataset.from_dict({"text": lines * 8})
    trainer = SFTTrainer(network, arguments, train_dataset=texts, processing_class=fast)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(p, before[name]) for name, p in network.named_parameters() if name in before)
    assert len(_warnings(caplog)) == 1
    assert "targets" not in caplog.text  # the labels are known, though the trainer keeps them from the forward
