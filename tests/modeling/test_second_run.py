"""Models that checkpoint their blocks themselves: the second run has the gates and layers of the first."""

import contextlib
import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from sptune import SPTConfig
from sptune.errors import InputError

SIZE = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(SIZE, SIZE)

    def forward(self, hidden_states):
        return hidden_states + torch.tanh(self.dense(hidden_states))


class Model(nn.Module):
    """Four blocks; `how` says what is checkpointed: nothing, blocks, calls of blocks, pairs of blocks, or all of it."""

    def __init__(self, how, reentrant):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": SIZE, "model_type": "own", "tie_word_embeddings": False})()
        torch.manual_seed(0)
        self.embedding = nn.Linear(SIZE, SIZE)
        self.layers = nn.ModuleList(Block() for _ in range(4))
        self.how, self.reentrant = how, reentrant

    def forward(self, inputs):
        states = self.embedding(inputs)
        if self.how == "pairs":
            for first in (0, 2):
                states = checkpoint(
                    nn.Sequential(*self.layers[first : first + 2]), states, use_reentrant=self.reentrant
                )
            return states
        for block in self.layers:
            if self.how == "nothing":
                states = block(states)
            else:
                call = block.__call__ if self.how == "calls" else block
                states = checkpoint(call, states, use_reentrant=self.reentrant)
        return states


def build(how, reentrant=False):
    network = get_peft_model(Model(how, reentrant), SPTConfig(prompt_layers="search", candidate_layers=[0, 1, 2, 3]))
    network.get_base_model().embedding.weight.requires_grad_(True)  # reentrant checkpointing needs a gradient there
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if "spt_generator" in name:
            nn.init.normal_(parameter)
    return network.train()


def contexts(network):
    tuner = network.base_model
    return {
        "gates": lambda: tuner.gating(torch.tensor([[0.9, 0.2, 0.5, 0.7]])),
        "layers": lambda: tuner.prompting_at([1, 3]),
        "other layers": lambda: tuner.prompting_at([0, 2]),
    }


def gradients(how, *names, reentrant=False):
    """Gradients of a loss over forwards in these contexts, which end before the backward pass."""
    network, loss = build(how, reentrant), 0.0
    inputs = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
    for name in names:
        with contexts(network)[name]():
            loss = loss + network(inputs).square().sum()
    loss.backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", ["blocks", "calls", "pairs"])
@pytest.mark.parametrize("names", [("gates",), ("layers",), ("layers", "gates", "other layers")], ids=str)
def test_gradients_are_those_without_checkpointing(how, names, reentrant):
    expected = gradients("nothing", *names)
    actual = gradients(how, *names, reentrant=reentrant)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_gates_learn_through_checkpointed_blocks():
    def gradient(how):
        network = build(how)
        values = torch.full((1, 4), 0.3, requires_grad=True)
        with network.base_model.gating(values):
            loss = network(torch.ones(2, SIZE)).square().sum()
        loss.backward()
        return values.grad

    torch.testing.assert_close(gradient("blocks"), gradient("nothing"))


def test_torch_func_differentiates_by_gates():
    network, inputs = build("nothing"), torch.ones(2, SIZE)

    def loss(values):
        with network.base_model.gating(values):
            return network(inputs).square().sum()

    values = torch.full((1, 4), 0.3, requires_grad=True)
    loss(values).backward()
    torch.testing.assert_close(torch.func.grad(loss)(values.detach()), values.grad)
    many = torch.rand(3, 1, 4)
    torch.testing.assert_close(torch.func.vmap(loss)(many), torch.stack([loss(one) for one in many]))


def test_a_context_that_is_not_known_is_refused():
    network = build("nothing")
    inputs = torch.ones(2, SIZE)
    with network.base_model.prompting_at([1]):
        loss = checkpoint(network, inputs, use_reentrant=False).sum()
    with pytest.raises(InputError, match=r"block 0 again.*one by one"):
        loss.backward()


def forwards_of_one_leaf(how, reentrant, *parts):
    """A network without an embedding and the loss of forwards on parts of one leaf, each in a context or in none."""
    network, loss = build(how, reentrant), 0.0
    network.get_base_model().embedding = nn.Identity()
    leaf = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for name, part in parts:
        with contexts(network)[name]() if name else contextlib.nullcontext():
            loss = loss + network(leaf[part] if part else leaf).square().sum()
    return network, loss


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("names", [("gates", "gates"), ("layers", "other layers"), ("layers", None), (None, "gates")])
def test_an_input_of_several_contexts_is_refused(names, reentrant):
    _, loss = forwards_of_one_leaf("blocks", reentrant, *((name, None) for name in names))
    with pytest.raises(InputError, match=r"block 0 again.*inputs\.clone"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_slices_of_one_input_have_contexts_of_their_own(reentrant):
    parts = (("layers", slice(0, 2)), ("gates", slice(2, 4)), ("layers", slice(0, 2)))
    for one, other in zip(*(_gradients_of(how, reentrant, *parts) for how in ("nothing", "blocks")), strict=True):
        torch.testing.assert_close(one, other)


def _gradients_of(how, reentrant, *parts):
    network, loss = forwards_of_one_leaf(how, reentrant, *parts)
    loss.backward()
    return [p.grad for name, p in network.named_parameters() if "spt_generator" in name]


def test_one_input_serves_many_steps():
    """Each step has a backward pass of its own, and evaluation in between has none."""

    def steps(how):
        network, inputs = build(how), torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2))
        network.get_base_model().embedding = nn.Identity()
        for name in ("gates", "other layers", "gates"):
            with contexts(network)[name]():
                loss = network(inputs).square().sum()
            with torch.no_grad(), contexts(network)["other layers"]():
                network(inputs)
            loss.backward()
        return [p.grad for name, p in network.named_parameters() if "spt_generator" in name]

    for one, other in zip(steps("nothing"), steps("blocks"), strict=True):
        torch.testing.assert_close(one, other)


def test_without_contexts_a_whole_model_may_be_checkpointed():
    network = build("nothing")
    inputs = torch.ones(2, SIZE)
    checkpoint(network, inputs, use_reentrant=False).sum().backward()
    again = copy.deepcopy(network)
    again.zero_grad()
    again(inputs).sum().backward()
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
