"""Prompts that are added to the tokens keep their properties (method section 8) in every family of transformers."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel

from conformance.families import BY_NAME, FAMILIES, HIDDEN_SIZE, IMAGE, LANGUAGE, NUM_LAYERS, SEQ2SEQ, SOUND
from sptune import SPTConfig, discretize

LANGUAGE_MODELS = [family for family in FAMILIES if family.takes == LANGUAGE]
TEXTS = [family for family in FAMILIES if family.takes not in (IMAGE, SOUND)]


@pytest.fixture(params=FAMILIES, ids=str)
def family(request):
    return request.param


@pytest.fixture
def attach(randomize):
    """``attach(model, family, **options)``: a network with random prompts, in evaluation mode."""

    def build(model, family, fresh=False, **options):
        options = {"prompt_layers": [1, 3], "layers_path": family.layers_path, **options}
        network = get_peft_model(model, SPTConfig(task_type=None, **options))
        if not fresh:
            randomize(network)
        return network.eval()

    return build


def _result(model, batch):
    with torch.no_grad():
        return next(iter(model(**batch).to_tuple()))


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_a_fresh_adapter_is_the_backbone_bit_for_bit(attach, family, prompt_layers):
    batch = family.batch()
    network = attach(family.build(), family, fresh=True, prompt_layers=prompt_layers)
    assert torch.equal(_result(network, batch), _result(family.build(), batch))


def test_closed_gates_are_the_backbone_bit_for_bit(attach, family):
    batch = family.batch()
    network = attach(family.build(), family, prompt_layers="search", candidate_layers=[0, 1, 2, 3])
    network.base_model.set_gate_values([0.0] * NUM_LAYERS)
    assert torch.equal(_result(network, batch), _result(family.build(), batch))


@pytest.mark.parametrize("generator", ["bottleneck", "static"])
def test_open_or_closed_gates_are_the_discrete_network(attach, family, generator):
    batch, options = family.batch(), {"prompt_layers": "search", "candidate_layers": [0, 1, 2, 3]}
    network = attach(family.build(), family, generator=generator, **options)
    gates = [0.0, 1.0, 0.0, 1.0]
    network.base_model.set_gate_values(gates)
    relaxed = _result(network, batch)
    with network.base_model.gating(torch.tensor([gates] * 3)):
        torch.testing.assert_close(_result(network, batch), relaxed)
    with network.base_model.prompting_at([1, 3]):
        torch.testing.assert_close(_result(network, batch), relaxed)
    discrete = discretize(network, [1, 3], warm_start=True).eval()
    torch.testing.assert_close(_result(discrete, batch), relaxed)
    assert (relaxed - _result(family.build(), batch)).abs().max() > 1e-3


def test_each_row_has_gates_of_its_own(attach, family):
    batch = family.batch()
    network = attach(family.build(), family, prompt_layers="search", candidate_layers=[0, 1, 2, 3])
    gates = torch.rand(3, NUM_LAYERS, generator=torch.Generator().manual_seed(0))
    with network.base_model.gating(gates):
        together = _result(network, batch)
    for row in range(3):
        with network.base_model.gating(gates[row : row + 1]):
            torch.testing.assert_close(_result(network, batch)[row], together[row], atol=1e-5, rtol=1e-4)


def test_each_row_has_an_adapter_of_its_own(attach, randomize, family):
    batch, network = family.batch(), attach(family.build(), family)
    network.add_adapter("other", SPTConfig(prompt_layers=[0, 3], bottleneck_dim=3, layers_path=family.layers_path))
    network.set_adapter("other")
    randomize(network, 7)
    names, alone = ["other", "default", "__base__"], {}
    for name in names[:2]:
        network.set_adapter(name)
        alone[name] = _result(network, batch)
    with network.disable_adapter():
        alone["__base__"] = _result(network, batch)
    with torch.no_grad():
        mixed = next(iter(network(**batch, adapter_names=names).to_tuple()))
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-5, rtol=1e-4)


def test_trainable_are_generators_alone_and_each_learns(attach, family):
    network = attach(family.build(), family)
    next(iter(network(**family.batch()).to_tuple())).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == ("spt_generator" in name), name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name
    down = 2 * (HIDDEN_SIZE * 4 + 4)
    assert network.get_nb_trainable_parameters()[0] == down + 2 * (4 * HIDDEN_SIZE + HIDDEN_SIZE)


def test_checkpointing_gives_the_same_gradients(attach, family):
    if not family.build().supports_gradient_checkpointing:
        pytest.skip("transformers has no checkpointing for it")
    gradients = []
    for checkpointing in (False, True):
        network = attach(family.build(), family)
        if checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        network.train()
        next(iter(network(**family.batch()).to_tuple())).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_layers_below_the_first_prompt_layer_need_no_backward_pass(attach, family):
    network, seen = attach(family.build(), family, prompt_layers=[2]), []

    def note(index):
        def hook(block, args, output):
            seen.append((index, (output[0] if isinstance(output, tuple) else output).requires_grad))

        return hook

    for index, block in enumerate(network.base_model.backbone.layers):
        block.register_forward_hook(note(index))
    network(**family.batch())
    assert dict(seen) == {0: False, 1: False, 2: True, 3: True}


def test_training_has_no_dropout_in_the_frozen_backbone(attach, family):
    dropout = {name: 0.5 for name in vars(family.build().config) if "drop" in name and "layer" not in name}
    network = attach(family.build(**{k: v for k, v in dropout.items() if k != "classifier_dropout"}), family).train()
    batch = family.batch()
    assert torch.equal(_result(network, batch), _result(network, batch))


def test_saved_and_loaded_gives_the_same(attach, family, tmp_path):
    batch = family.batch()
    network = attach(family.build(), family)
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family.build(), tmp_path).eval()
    torch.testing.assert_close(_result(loaded, batch), _result(network, batch), atol=1e-6, rtol=1e-6)


def test_disabled_or_unloaded_is_the_backbone_bit_for_bit(attach, family):
    batch, bare = family.batch(), family.build()
    network = attach(family.build(), family)
    with network.disable_adapter():
        assert torch.equal(_result(network, batch), _result(bare, batch))
    backbone = network.unload()
    assert torch.equal(_result(backbone, batch), _result(bare, batch))
    assert [name for name, _ in backbone.named_modules()] == [name for name, _ in bare.named_modules()]


@pytest.mark.parametrize("family", TEXTS, ids=str)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_matter(attach, family, side):
    if side == "left" and not family.pads_left:
        pytest.skip("the backbone itself counts positions from the left edge")
    network = attach(family.build(), family)
    batch = family.batch(side=side, extra=3)
    padded = _result(network, batch)
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        alone |= {name: alone[name][:, real] for name in ("input_ids", "attention_mask")}
        kept = padded[row] if family.takes == SEQ2SEQ else padded[row][real]
        torch.testing.assert_close(kept, _result(network, alone)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", LANGUAGE_MODELS, ids=str)
def test_a_token_does_not_reach_the_logits_before_it(attach, family):
    network, batch = attach(family.build(), family), family.batch((8, 8))
    before = _result(network, batch)
    batch["input_ids"][0, 5] += 1 if batch["input_ids"][0, 5] < 90 else -1
    after = _result(network, batch)
    torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-5, rtol=0)
    assert (after[0, 5:] - before[0, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", [f for f in TEXTS if f.takes in (LANGUAGE, SEQ2SEQ)], ids=str)
def test_cached_generation_is_uncached(attach, family, num_beams):
    network = attach(family.build(), family)
    batch = family.batch(
        side="left" if family.pads_left else "right", lengths=(6, 6) if not family.pads_left else (9, 5)
    )
    batch.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": num_beams}
    cached = network.generate(**batch, use_cache=True, **options)
    assert torch.equal(network.generate(**batch, use_cache=False, **options), cached)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "gpt2", "llama", "qwen3", "gemma3", "vit", "opt"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_compiled_is_one_graph(attach, name, prompt_layers):
    torch._dynamo.reset()
    family = BY_NAME[name]
    network, batch = attach(family.build(), family, prompt_layers=prompt_layers), family.batch((9, 9))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(_result(compiled, batch), _result(network, batch), atol=1e-5, rtol=1e-5)


# -- what is refused


def test_one_block_at_all_layers_is_refused():
    shape = {**BY_NAME["bert"].shape, "embedding_size": 16, "num_hidden_groups": 1}
    albert = AutoModel.from_config(AutoConfig.for_model("albert", **shape))
    with pytest.raises(ValueError, match="same block at each of their 4 layers"):
        get_peft_model(albert, SPTConfig(prompt_layers=[1]))
    with pytest.raises(ValueError, match="same block"):
        get_peft_model(albert, SPTConfig(prompt_layers=[0], layers_path="encoder.albert_layer_groups"))


@pytest.mark.parametrize("name", ["t5-encoder", "bart-decoder"])
def test_an_encoder_decoder_asks_for_its_side(name):
    family = BY_NAME[name]
    with pytest.raises(ValueError, match="several lists of blocks") as refusal:
        get_peft_model(family.build(), SPTConfig(prompt_layers=[1]))
    assert family.layers_path in str(refusal.value)


def test_towers_for_images_and_texts_ask_for_one():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 16, "patch_size": 4}
    config = CLIPConfig(text_config={**sizes, "vocab_size": 100, "eos_token_id": 2}, vision_config=vision)
    with pytest.raises(ValueError, match="several lists of blocks"):
        get_peft_model(CLIPModel(config), SPTConfig(prompt_layers=[1]))
    network = get_peft_model(CLIPModel(config), SPTConfig(prompt_layers=[1], layers_path="text_model.encoder.layers"))
    assert network.get_nb_trainable_parameters()[0] == 2 * 32 * 4 + 4 + 32


def test_stages_of_several_widths_are_refused():
    shape = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    network = get_peft_model(AutoModel.from_config(AutoConfig.for_model("swin", **shape)), SPTConfig(prompt_layers=[0]))
    with pytest.raises(ValueError, match="states of width 8"):
        network(pixel_values=torch.zeros(1, 3, 32, 32))


def test_a_model_without_blocks_is_refused():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="No list of blocks"):
        get_peft_model(network, SPTConfig(prompt_layers=[1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_virtual_tokens", 4),
        ("mixing_rate", 0.5),
        ("visibility", "always"),
        ("residual", False),
        ("generator", "npg"),
    ],
)
def test_what_belongs_to_prepend_is_refused_with_the_remedy(name, value):
    with pytest.raises(ValueError, match=f"(?s){name}.*placement='prepend'"):
        SPTConfig(**{name: value})
