"""Logits only at positions that predict a label: losses and gradients are those of all positions."""

import inspect

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
)

from sptune.modeling.labeled_positions import at_labels

SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WIDE = {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}
CONFIGS = {
    "bloom": BloomConfig(**{**SMALL, "n_layer": 2, "n_head": 4}),
    "falcon": FalconConfig(**SMALL),
    "gemma2": Gemma2Config(**WIDE, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
    "gpt-neox": GPTNeoXConfig(**WIDE),
    "mixtral": MixtralConfig(**WIDE, num_key_value_heads=2, **EXPERTS),
    "opt": OPTConfig(**{**SMALL, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "phi": PhiConfig(**WIDE),
    "bert decoder": BertConfig(**WIDE, is_decoder=True),
    "bart decoder": BartConfig(
        vocab_size=100, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, pad_token_id=0
    ),
}
# Their loss compares a position's logits with the label of the same position.
UNSHIFTED = {"bart decoder"}


def completions(*spans, length=12, left=False):
    """A batch with a row for each span of tokens that have labels, padded after the last of them or before."""
    tokens = torch.randint(5, 100, (len(spans), length), generator=torch.Generator().manual_seed(4))
    mask, labels = torch.ones_like(tokens), torch.full_like(tokens, -100)
    for row, (start, end) in enumerate(spans):
        labels[row, start:end] = tokens[row, start:end]
        mask[row, end:] = 0
    batch = {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}
    if left:
        shifts = [length - int(row.sum()) for row in mask]
        batch = {
            name: torch.stack([row.roll(by) for row, by in zip(value, shifts, strict=True)])
            for name, value in batch.items()
        }
    return batch


def gradients(model, inputs):
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert grads
    return outputs, grads


def assert_same_loss(model, inputs, kept):
    """The loss and gradients of some positions' logits are those of all; returns both numbers of positions."""
    plain, expected = gradients(model, inputs)
    fewer, found = gradients(model, kept)
    torch.testing.assert_close(fewer.loss, plain.loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    return plain.logits.shape[1], fewer.logits.shape[1]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_own_loss_of_a_model_does_not_change(family):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    inputs = completions((6, 9), (5, 7), (8, 12))
    kept = at_labels(model, inputs)
    assert_same_loss(model, inputs, kept)
    could = "logits_to_keep" in inspect.signature(model.forward).parameters
    assert ("logits_to_keep" in kept) is (could and family not in UNSHIFTED)
    if "logits_to_keep" in kept:
        # Positions 4 ... 10 predict a label, and the last one is kept too.
        assert kept["logits_to_keep"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("placement", ["add", "prepend"])
def test_prompts_learn_the_same(build_network, causal_case, placement, left):
    network = build_network(causal_case, placement=placement)
    inputs = completions((6, 9), (6, 7), (8, 10), left=left)
    kept = at_labels(network, inputs)
    everywhere, fewer = assert_same_loss(network, inputs, kept)
    assert fewer < everywhere


def test_lora_on_the_head_learns_the_same(build_backbone, llama):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    network = get_peft_model(build_backbone(llama), config)
    inputs = completions((6, 9), (6, 7))
    everywhere, fewer = assert_same_loss(network, inputs, at_labels(network, inputs))
    assert fewer < everywhere


def test_packed_texts_learn_the_same(build_network, llama):
    network = build_network(llama, placement="add")
    inputs = completions((3, 5))
    inputs["labels"][0, 8:10] = inputs["input_ids"][0, 8:10] = 17
    inputs["position_ids"] = torch.tensor([[*range(5), *range(7)]])
    del inputs["attention_mask"]
    everywhere, fewer = assert_same_loss(network, inputs, at_labels(network, inputs))
    assert (everywhere, fewer) == (12, 5)


def test_a_batch_without_a_label_keeps_one_position(build_backbone, llama):
    model = build_backbone(llama)
    kept = at_labels(model, completions((6, 6), (7, 7)))
    assert model(**kept).logits.shape[1] == 1


class OwnForward(LlamaForCausalLM):
    def forward(self, input_ids=None, labels=None, logits_to_keep=0, **kwargs):
        return super().forward(input_ids=input_ids, labels=labels, logits_to_keep=logits_to_keep, **kwargs)


def other_loss(logits, labels, **kwargs):
    return logits.square().mean()


@pytest.mark.parametrize(
    "reason", ["all labels", "inputs", "forward", "loss", "prompt tuning", "data parallel", "devices"]
)
def test_all_logits_are_computed_where_fewer_are_not_known_to_be_enough(build_backbone, llama, reason):
    model = build_backbone(llama)
    inputs = completions((6, 9), (6, 7))
    if reason == "all labels":
        inputs["labels"][0] = inputs["input_ids"][0]
    if reason == "inputs":
        inputs["inputs_embeds"] = None
    if reason == "forward":
        model = OwnForward(model.config)
    if reason == "loss":
        model.loss_function = other_loss
    if reason == "prompt tuning":
        model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    if reason == "data parallel":
        model = nn.DataParallel(model)
    if reason == "devices":
        model.hf_device_map = {"model": 0, "lm_head": 1}
    assert at_labels(model, inputs).keys() == inputs.keys()
