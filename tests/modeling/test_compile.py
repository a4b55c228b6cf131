"""`torch.compile` sees one graph, and computes the same."""

import pytest
import torch
from torch import _dynamo

COMPILED = [("bert", "classifier"), ("roberta", "classifier"), ("llama", "lm")]


@pytest.fixture(autouse=True)
def fresh_compiler():
    _dynamo.reset()


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize(("family", "head"), COMPILED)
def test_compiled_networks_compute_the_same(build_network, build_batch, family_case, family, head, prompt_layers):
    case = family_case(family)
    network, batch = build_network(case, head, prompt_layers=prompt_layers), build_batch(case)
    batch.pop("position_ids", None)  # whether they hold packed sequences is looked up in their values
    if head == "lm" and case.causal:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"].cumsum(-1) <= 3, -100)
    losses, gradients = [], []
    for run in (network, torch.compile(network, backend="eager", fullgraph=True)):
        network.zero_grad()
        loss = run(**batch).logits.square().mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
