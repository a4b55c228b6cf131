"""The adapter's life in PEFT: trainable parameters, saving and loading, several adapters, disabling, removing."""

import json

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_base_model_state_dict,
    get_layer_status,
    get_model_status,
    get_peft_model,
    set_base_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForSequenceClassification
from transformers.integrations import peft as native

from assertions import assert_identical
from sptune import InputError, SPTConfig

HEADS = ["lm", "classifier"]


def transformers_takes_this_peft() -> bool:
    """Whether transformers' own adapter methods accept the PEFT that is installed: 5.24 wants one newer than 0.21.2.

    Loading does not ask.
    """
    try:
        native.check_peft_version(min_version=native.MIN_PEFT_VERSION)
    except ValueError:
        return False
    return True


def _states(network, marker=""):
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if marker in name}


def _build_two(build_network, build_config, randomize, case, head="lm"):
    """A network with adapters 'default' (layers 1 and 3) and 'other' (layers 2 and 3), 'default' active."""
    network = build_network(case, head, prompt_layers=[1, 3])
    network.add_adapter("other", build_config(case, head, prompt_layers=[2, 3], generator="static"))
    network.set_adapter("other")
    randomize(network, seed=3)
    network.set_adapter("default")
    return network.eval()


# Trainable parameters


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3], "middle"], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_trainable_are_generators_gates_and_modules_to_save(build_network, case, head, prompt_layers):
    network = build_network(case, head, prompt_layers=prompt_layers)
    tuner = network.base_model
    expected = {id(p) for parameters in tuner.generator_parameters().values() for p in parameters}
    if prompt_layers == "search":
        assert list(tuner.gate_parameters()) == case.candidates
        expected |= {id(p) for p in tuner.gate_parameters().values()}
    expected |= {id(p) for name, p in network.named_parameters() if "modules_to_save" in name}
    assert {id(p) for p in network.parameters() if p.requires_grad} == expected
    assert any("modules_to_save" in name for name, _ in network.named_parameters()) == (head == "classifier")


def test_a_named_module_is_trained_and_saved_too(build_network, build_backbone, logits_of, build_batch, bert, tmp_path):
    network = build_network(bert, modules_to_save=["cls"])
    assert any("cls.modules_to_save" in name and p.requires_grad for name, p in network.named_parameters())
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(bert), tmp_path)
    assert torch.equal(logits_of(loaded, build_batch(bert)), logits_of(network, build_batch(bert)))


# Modules to save inside blocks

# One or two of a kind for each way in which families build blocks: parts that stand directly in a block and deeper, all
# blocks' or one's, in blocks and outside at once.
IN_BLOCKS = {
    "bert": [["LayerNorm"], ["output"], ["layer.3.output"], ["bert.encoder.layer.0.attention.output.dense", "pooler"]],
    "deberta-v3": [["LayerNorm"], ["query_proj"], ["layer.2.intermediate", "rel_embeddings"]],
    "gpt2": [["ln_1"], ["h.3.mlp", "wpe"], ["c_attn"]],
    "llama": [["input_layernorm"], ["mlp"], ["norm"], ["layers.2.self_attn", "embed_tokens"]],
}
TARGETS = {"bert": "key", "deberta-v3": "value_proj", "gpt2": "c_fc", "llama": "k_proj"}


@pytest.fixture(params=[(name, part) for name, parts in IN_BLOCKS.items() for part in parts], ids=str)
def in_blocks(request, family_case):
    """``(case, names)``: modules to save, some of which are in blocks."""
    name, names = request.param
    return family_case(name), names


def _saved_parameters(network):
    """Names, in the bare backbone, of what is trained of `modules_to_save`."""
    names = [name for name, p in network.named_parameters() if p.requires_grad and "modules_to_save" in name]
    for infix in ("base_model.model.", ".base_layer", ".modules_to_save.default"):
        names = [name.replace(infix, "") for name in names]
    return sorted(names)


def test_modules_in_blocks_are_trained_as_with_lora(
    build_network, build_backbone, build_batch, logits_of, train_step, in_blocks
):
    case, names = in_blocks
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=[TARGETS[case.name]], modules_to_save=list(names))
    expected = _saved_parameters(get_peft_model(build_backbone(case, "classifier"), lora))
    network = build_network(case, "classifier", modules_to_save=list(names))
    assert _saved_parameters(network) == expected
    before, batch = _states(network), build_batch(case)
    train_step(network, batch)
    changed = {name for name, tensor in _states(network).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, p in network.named_parameters() if p.requires_grad}
    with network.disable_adapter():
        assert torch.equal(logits_of(network, batch), logits_of(build_backbone(case, "classifier"), batch))


def test_modules_in_blocks_are_saved_and_loaded(
    build_network, build_backbone, build_batch, logits_of, train_step, in_blocks, tmp_path
):
    case, names = in_blocks
    network = build_network(case, "classifier", modules_to_save=list(names))
    network.save_pretrained(tmp_path)
    batch = build_batch(case)
    expected = logits_of(network, batch)
    assert torch.equal(
        logits_of(PeftModel.from_pretrained(build_backbone(case, "classifier"), tmp_path), batch), expected
    )
    model = build_backbone(case, "classifier")
    model.load_adapter(str(tmp_path))
    assert torch.equal(logits_of(model, batch), expected)
    further = PeftModel.from_pretrained(build_backbone(case, "classifier"), tmp_path, is_trainable=True)
    assert _saved_parameters(further) == _saved_parameters(network)
    for one in (network, further):
        train_step(one, batch)
    assert_identical(_states(network), _states(further))


def test_unloading_gives_a_plain_backbone_with_its_trained_modules(
    build_network, build_backbone, build_batch, logits_of, in_blocks, tmp_path
):
    case, names = in_blocks
    network = build_network(case, "classifier", modules_to_save=list(names))
    trained = {
        name.replace("base_model.model.", "")
        .replace(".base_layer", "")
        .replace(".modules_to_save.default", ""): p.clone()
        for name, p in network.named_parameters()
        if "modules_to_save" in name
    }
    model, untouched = network.unload(), build_backbone(case, "classifier")
    assert [(name, type(one)) for name, one in model.named_modules()] == [
        (name, type(one)) for name, one in untouched.named_modules()
    ]
    assert_identical(_states(untouched) | trained, _states(model))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=case.attention).eval()
    assert torch.equal(logits_of(again, build_batch(case)), logits_of(model, build_batch(case)))


def test_adapters_with_and_without_modules_in_blocks_do_not_meet(
    build_network, build_config, build_batch, logits_of, train_step, randomize, in_blocks, tmp_path
):
    case, names = in_blocks
    network, batch = build_network(case, "classifier"), build_batch(case)
    plain = logits_of(network, batch)
    for adapter, seed in (("one", 3), ("two", 4)):
        network.add_adapter(adapter, build_config(case, "classifier", modules_to_save=list(names)))
        assert torch.equal(logits_of(network, batch), plain), "an added adapter is not active"
        network.set_adapter(adapter)
        randomize(network, seed=seed)
        network.set_adapter("default")
        assert torch.equal(logits_of(network, batch), plain)
    outputs = {}
    for adapter in ("one", "two"):
        network.set_adapter(adapter)
        assert all(f".{adapter}." in name for name, p in network.named_parameters() if p.requires_grad)
        outputs[adapter] = logits_of(network, batch)
    train_step(network, batch)
    network.set_adapter("one")
    assert torch.equal(logits_of(network, batch), outputs["one"])
    network.delete_adapter("two")
    network.set_adapter("default")
    assert torch.equal(logits_of(network, batch), plain)
    network.set_adapter("one")
    assert torch.equal(logits_of(network, batch), outputs["one"])


def test_base_weights_keep_their_names_with_modules_in_blocks(build_network, build_backbone, llama):
    network = build_network(llama, "classifier", modules_to_save=["input_layernorm"])
    states = build_backbone(llama, "classifier").state_dict()
    assert_identical(states, get_base_model_state_dict(network))
    set_base_model_state_dict(network, states)


@pytest.mark.parametrize(
    ("family", "names", "message"),
    [
        ("bert", ["encoder"], r"bert.encoder, which holds 4 blocks .*'bert.encoder.layer.0.intermediate'"),
        ("bert", ["layer"], "holds 4 blocks"),
        ("bert", ["layer.2"], r"holds block 2 .*'bert.encoder.layer.2.attention'"),
        ("llama", ["model"], "holds 4 blocks"),
        ("gpt2", ["h"], "holds 4 blocks"),
        ("bert", ["nowhere"], "'nowhere', but no module's path in the backbone ends with it"),
        ("bert", [r".*\.LayerNorm"], "not patterns"),
        ("bert", ["layer.9.output"], "no module's path"),
        ("bert", ["pooler", "dropout"], "'dropout', but bert.embeddings.dropout has no weights"),
        ("llama", ["rotary_emb"], "no weights"),
        ("bert", ["attention", "dense"], r"attention.output.dense, which is a part of it"),
        ("bert", ["embeddings"], r"bert.embeddings and also bert.embeddings.\w+, which is a part"),
        ("deberta-v3", ["attention"], r"probabilities of attention.self.*query_proj"),
        ("deberta-v3", ["attention.self"], "query_proj"),
    ],
    ids=str,
)
def test_modules_that_cannot_be_trained_are_refused_untouched(
    build_backbone, build_config, family_case, family, names, message
):
    case = family_case(family)
    model = build_backbone(case, "classifier")
    with pytest.raises(InputError, match=message):
        get_peft_model(model, build_config(case, "classifier", modules_to_save=names))
    untouched = build_backbone(case, "classifier")
    assert [(name, type(one)) for name, one in model.named_modules()] == [
        (name, type(one)) for name, one in untouched.named_modules()
    ]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in untouched.parameters()]
    get_peft_model(model, build_config(case, "classifier"))


def test_a_second_adapter_with_other_parts_of_a_module_is_refused_untouched(
    build_network, build_config, build_batch, logits_of, bert
):
    """PEFT would wrap a module that holds a wrapper, and the first adapter's file would name what no backbone has."""
    for first, second in ((["output.dense"], ["layer.1.output"]), (["layer.1.output"], ["output.dense"])):
        network = build_network(bert, modules_to_save=first)
        expected, states = logits_of(network, build_batch(bert)), _states(network)
        with pytest.raises(InputError, match="a part of it"):
            network.add_adapter("other", build_config(bert, modules_to_save=second))
        assert list(network.peft_config) == ["default"]
        assert_identical(states, _states(network))
        assert torch.equal(logits_of(network, build_batch(bert)), expected)


@pytest.mark.parametrize("names", ["classifier", ["classifier", ""], [3], 3], ids=str)
def test_modules_to_save_is_a_list_of_names(names):
    with pytest.raises(ValueError, match="give a list of names"):
        SPTConfig(modules_to_save=names)


def test_dropout_of_modules_in_blocks_is_on_in_training_only(build_backbone, build_config, build_batch, bert):
    backbone = build_backbone(bert, hidden_dropout_prob=0.3)
    network = get_peft_model(backbone, build_config(bert, modules_to_save=["layer.3.output"]))
    batch = build_batch(bert)
    network.train()
    assert not torch.equal(network(**batch).logits, network(**batch).logits)
    network.eval()
    assert torch.equal(network(**batch).logits, network(**batch).logits)


# Dtypes


def _formats(network, adapter="default"):
    names = ("spt_generator", "spt_gate")
    return {p.dtype for n, p in network.named_parameters() if f".{adapter}" in n and any(name in n for name in names)}


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_generators_and_gates_take_the_format_of_the_backbone_if_asked(
    build_backbone, build_config, build_batch, some_case, dtype, autocast, tmp_path
):
    """On every way to an adapter; modules to save keep the backbone's format, as with LoRA."""
    expected = {torch.float32 if autocast else dtype}
    options = {"autocast_adapter_dtype": autocast}

    def backbone():
        return build_backbone(some_case, "classifier").to(dtype)

    def config(**more):
        return build_config(some_case, "classifier", **more)

    saved = {"bert": "LayerNorm", "deberta-v3": "LayerNorm", "gpt2": "ln_1", "llama": "mlp"}[some_case.name]
    network = get_peft_model(backbone(), config(prompt_layers="search", modules_to_save=[saved]), **options)
    assert _formats(network) == expected
    network.add_adapter("other", config(prompt_layers=[2], generator="static"), **options)
    assert _formats(network, "other") == expected
    network.save_pretrained(tmp_path)
    batch = build_batch(some_case)
    for lean in (False, True):
        loaded = PeftModel.from_pretrained(backbone(), tmp_path, low_cpu_mem_usage=lean, **options)
        assert _formats(loaded) == expected
        loaded.load_adapter(tmp_path / "other", "other", low_cpu_mem_usage=lean, **options)
        assert _formats(loaded, "other") == expected
        assert {p.dtype for name, p in loaded.named_parameters() if "modules_to_save" in name} == {dtype}
        with torch.no_grad():
            assert loaded(**batch).logits.isfinite().all()
    network.train()(**batch).logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


# What a soft prompt cannot do, and what it can


def test_adding_adapters_up_is_refused(build_network, build_config, randomize, bert):
    network = _build_two(build_network, build_config, randomize, bert)
    with pytest.raises(InputError, match=r"add_weighted_adapter.*set_adapter"):
        network.add_weighted_adapter(["default", "other"], [0.5, 0.5], "sum")
    assert list(network.peft_config) == ["default", "other"]


def test_input_casting_can_be_disabled(build_backbone, build_config, build_batch, logits_of, bert):
    network = get_peft_model(build_backbone(bert), build_config(bert)).eval()
    batch = build_batch(bert)
    expected = logits_of(network, batch)
    with disable_input_dtype_casting(network):
        assert torch.equal(logits_of(network, batch), expected)
    half = get_peft_model(build_backbone(bert).to(torch.bfloat16), build_config(bert)).eval()
    with disable_input_dtype_casting(half), pytest.raises(RuntimeError, match="dtype"):
        logits_of(half, batch)
    assert logits_of(half, batch).dtype == torch.bfloat16


def test_merging_is_refused_untouched(build_network, build_batch, logits_of, bert):
    network = build_network(bert, modules_to_save=["word_embeddings"])
    expected = logits_of(network, build_batch(bert))
    for merge in (network.merge_adapter, network.merge_and_unload):
        with pytest.raises(InputError, match="cannot be merged"):
            merge()
        assert any(isinstance(module, ModulesToSaveWrapper) for module in network.modules())
        assert torch.equal(logits_of(network, build_batch(bert)), expected)


def test_status_counts_modules_in_blocks(build_network, llama):
    network = build_network(llama, "classifier", modules_to_save=["input_layernorm"])
    assert get_model_status(network).available_adapters == ["default"]
    assert sum(one.module_type == "ModulesToSaveWrapper" for one in get_layer_status(network)) == 5


# Saving and loading


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_gives_the_same_logits(
    build_network, build_backbone, build_batch, logits_of, case, head, prompt_layers, tmp_path
):
    network = build_network(case, head, prompt_layers=prompt_layers, mixing_rate=0.5)
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(case, head), tmp_path)
    batch = build_batch(case)
    assert torch.equal(logits_of(loaded, batch), logits_of(network, batch))
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_transformers_loads_an_adapter_itself(
    build_network, build_backbone, build_batch, logits_of, case, head, tmp_path
):
    network = build_network(case, head)
    network.save_pretrained(tmp_path)
    model = build_backbone(case, head)
    model.load_adapter(str(tmp_path))
    batch = build_batch(case)
    assert torch.equal(logits_of(model, batch), logits_of(network, batch))
    if not transformers_takes_this_peft():
        with pytest.raises(ValueError, match="version of PEFT"):
            model.disable_adapters()
        return
    model.disable_adapters()
    assert torch.equal(logits_of(model, batch), logits_of(build_backbone(case, head), batch))
    if head == "lm":  # transformers leaves modules_to_save disabled, whatever the adapter
        model.enable_adapters()
        assert torch.equal(logits_of(model, batch), logits_of(network, batch))


def test_an_adapter_that_transformers_loaded_generates(
    build_network, build_backbone, build_batch, causal_case, tmp_path
):
    network = build_network(causal_case)
    network.save_pretrained(tmp_path)
    model = build_backbone(causal_case)
    model.load_adapter(str(tmp_path))
    batch = build_batch(causal_case, side="left")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = network.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert torch.equal(model.generate(**inputs, **options, use_cache=False), expected)


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_training_goes_on_where_it_stopped(
    build_network, build_backbone, build_batch, train_step, case, head, prompt_layers, tmp_path
):
    network = build_network(case, head, prompt_layers=prompt_layers)
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(case, head), tmp_path, is_trainable=True)
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == names
    for model in (network, loaded):
        train_step(model, build_batch(case))
    assert_identical(_states(network), _states(loaded))


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_layers": "search", "candidate_layers": [1, 2], "visibility": "always", "activation": "gelu"},
        {"prompt_layers": [1, 3], "generator": "npg", "projection": "phm", "phm_dim": 2, "mixing_rate": 0.25},
    ],
    ids=["search", "final"],
)
def test_the_configuration_is_saved_whole(build_network, bert, options, tmp_path):
    network = build_network(bert, **options)
    network.save_pretrained(tmp_path)
    saved = SPTConfig.from_pretrained(tmp_path)
    for name, value in options.items():
        assert getattr(saved, name) == value
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SPT"


def test_an_adapter_from_before_there_were_placements_is_one_in_front_of_the_text(
    build_network, build_backbone, build_batch, logits_of, some_case, tmp_path
):
    network = build_network(some_case)
    network.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    assert config.pop("placement") == "prepend"
    file.write_text(json.dumps(config))
    batch = build_batch(some_case)
    loaded = PeftModel.from_pretrained(build_backbone(some_case), tmp_path)
    assert torch.equal(logits_of(loaded, batch), logits_of(network, batch))


def test_adapters_of_both_placements_do_not_meet(build_network, build_config, build_batch, logits_of, randomize, case):
    batch = build_batch(case)
    in_front, added = build_network(case), build_network(case, placement="add", prompt_layers=[2])
    both = build_network(case, placement="add", prompt_layers=[2])
    both.add_adapter("in front", build_config(case))
    both.set_adapter("in front")
    randomize(both)
    torch.testing.assert_close(logits_of(both, batch), logits_of(in_front, batch), atol=1e-6, rtol=0)
    both.set_adapter("default")
    torch.testing.assert_close(logits_of(both, batch), logits_of(added, batch), atol=1e-6, rtol=0)
    both.delete_adapter("in front")
    torch.testing.assert_close(logits_of(both, batch), logits_of(added, batch), atol=1e-6, rtol=0)


def test_a_named_setting_is_saved_as_its_layers(build_network, bert, tmp_path):
    """So that the file says which layers they are without the backbone at hand."""
    build_network(bert, prompt_layers="middle").save_pretrained(tmp_path)
    assert SPTConfig.from_pretrained(tmp_path).prompt_layers == [2]


def test_an_adapter_loads_under_another_name(build_network, build_backbone, build_batch, logits_of, case, tmp_path):
    network = build_network(case, "classifier", prompt_layers="search")
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(case, "classifier"), tmp_path, adapter_name="renamed")
    assert torch.equal(logits_of(loaded, build_batch(case)), logits_of(network, build_batch(case)))
    assert not any("default" in name for name in loaded.state_dict())


# Two adapters


def test_adding_an_adapter_changes_nothing_for_the_first(
    build_network, build_config, build_batch, logits_of, randomize, case
):
    network = build_network(case)
    batch, before, states = build_batch(case), logits_of(network, build_batch(case)), _states(network)
    network.add_adapter("other", build_config(case, prompt_layers=[2, 3], generator="static"))
    assert torch.equal(logits_of(network, batch), before)
    assert_identical(states, {name: tensor for name, tensor in _states(network).items() if name in states})


@pytest.mark.parametrize("head", HEADS)
def test_each_adapter_gives_what_it_gives_alone(
    build_network, build_backbone, build_config, build_batch, logits_of, randomize, case, head
):
    network = _build_two(build_network, build_config, randomize, case, head)
    batch = build_batch(case)
    first = logits_of(network, batch)
    network.set_adapter("other")
    second = logits_of(network, batch)
    assert torch.equal(first, logits_of(build_network(case, head, prompt_layers=[1, 3]), batch))
    alone = get_peft_model(
        build_backbone(case, head), build_config(case, head, prompt_layers=[2, 3], generator="static")
    )
    randomize(alone, seed=3)
    assert torch.equal(second, logits_of(alone.eval(), batch))
    assert (first - second).abs().max() > 1e-2
    network.set_adapter("default")
    assert torch.equal(logits_of(network, batch), first)


@pytest.mark.parametrize("head", HEADS)
def test_training_one_adapter_leaves_the_other_bit_for_bit(
    build_network, build_config, build_batch, logits_of, train_step, randomize, case, head
):
    network = _build_two(build_network, build_config, randomize, case, head)
    batch = build_batch(case)
    weights, logits = _states(network, ".default."), logits_of(network, batch)
    network.set_adapter("other")
    other = _states(network, ".other.")
    train_step(network, batch)
    assert any(not torch.equal(tensor, other[name]) for name, tensor in _states(network, ".other.").items())
    network.set_adapter("default")
    assert_identical(weights, _states(network, ".default."))
    assert torch.equal(logits_of(network, batch), logits)


def test_only_the_active_adapter_is_trainable(build_network, build_config, randomize, some_case):
    network = _build_two(build_network, build_config, randomize, some_case, "classifier")
    for active in ("default", "other"):
        network.set_adapter(active)
        trainable = [name for name, p in network.named_parameters() if p.requires_grad]
        assert trainable
        assert all(f".{active}." in name for name in trainable)


def test_a_search_beside_a_final_network(build_network, build_config, build_batch, logits_of, randomize, case):
    """Gates, candidate layers and their values belong to one adapter."""
    network = build_network(case)
    batch, before = build_batch(case), logits_of(network, build_batch(case))
    network.add_adapter("search", build_config(case, prompt_layers="search", num_virtual_tokens=5))
    network.set_adapter("search")
    randomize(network, seed=4)
    assert network.base_model.generator_layers == case.candidates
    network.base_model.set_gate_values([0.0] * len(case.candidates))
    with network.disable_adapter():
        backbone = logits_of(network, batch)
    torch.testing.assert_close(logits_of(network, batch), backbone, atol=1e-5, rtol=0)
    network.set_adapter("default")
    assert network.base_model.generator_layers == [1, 3]
    assert torch.equal(logits_of(network, batch), before)


def test_two_adapters_are_saved_and_loaded_each_by_itself(
    build_network, build_backbone, build_config, build_batch, logits_of, randomize, case, tmp_path
):
    network = _build_two(build_network, build_config, randomize, case)
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build_backbone(case), tmp_path / "other", adapter_name="other")
    loaded.load_adapter(tmp_path, "default")
    batch = build_batch(case)
    for name in ("default", "other"):
        network.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits_of(loaded, batch), logits_of(network, batch))


def test_two_adapters_generate_each_by_itself(build_network, build_config, build_batch, randomize, causal_case):
    network = _build_two(build_network, build_config, randomize, causal_case)
    batch = build_batch(causal_case, side="left")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    for name in ("other", "default"):
        network.set_adapter(name)
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        cached = network.generate(**inputs, **options)
        assert torch.equal(cached, network.generate(**inputs, **options, use_cache=False))


@pytest.mark.parametrize("head", HEADS)
def test_deleting_an_adapter_leaves_the_other(
    build_network, build_config, build_batch, logits_of, randomize, case, head
):
    network = _build_two(build_network, build_config, randomize, case, head)
    batch, before = build_batch(case), logits_of(network, build_batch(case))
    network.delete_adapter("other")
    assert torch.equal(logits_of(network, batch), before)
    assert not any(".other." in name for name in network.state_dict())
    assert list(network.peft_config) == ["default"]


def test_deleting_the_active_adapter_leaves_the_other(
    build_network, build_config, build_batch, logits_of, randomize, case
):
    network = _build_two(build_network, build_config, randomize, case)
    batch = build_batch(case)
    network.set_adapter("other")
    expected = logits_of(network, batch)
    network.set_adapter("default")
    network.delete_adapter("default")
    network.set_adapter("other")
    assert torch.equal(logits_of(network, batch), expected)
    assert not any(".default." in name for name in network.state_dict())


def test_an_adapter_can_be_deleted_and_added_again(
    build_network, build_config, build_batch, logits_of, randomize, case
):
    network = _build_two(build_network, build_config, randomize, case)
    batch = build_batch(case)
    network.set_adapter("other")
    expected = logits_of(network, batch)
    network.set_adapter("default")
    network.delete_adapter("other")
    network.add_adapter("other", build_config(case, prompt_layers=[2, 3], generator="static"))
    network.set_adapter("other")
    randomize(network, seed=3)
    assert torch.equal(logits_of(network, batch), expected)


# Without the adapter


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_disabled_is_the_backbone_bit_for_bit(
    build_network, build_backbone, build_batch, logits_of, case, head, prompt_layers
):
    network = build_network(case, head, prompt_layers=prompt_layers)
    batch = build_batch(case)
    prompted = logits_of(network, batch)
    with network.disable_adapter():
        assert torch.equal(logits_of(network, batch), logits_of(build_backbone(case, head), batch))
    assert torch.equal(logits_of(network, batch), prompted)


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_unloading_gives_back_the_backbone_bit_for_bit(
    build_network, build_backbone, build_batch, logits_of, train_step, case, prompt_layers
):
    network = build_network(case, prompt_layers=prompt_layers)
    train_step(network, build_batch(case))
    logits_of(network, build_batch(case))
    model, untouched = network.unload(), build_backbone(case)
    assert type(model) is type(untouched)
    assert_identical(_states(untouched), _states(model))
    assert torch.equal(logits_of(model, build_batch(case)), logits_of(untouched, build_batch(case)))


def test_unloading_leaves_no_module_hook_or_method_behind(build_network, build_backbone, build_config, randomize, case):
    model, untouched = _build_two(build_network, build_config, randomize, case).unload(), build_backbone(case)
    left, expected = dict(model.named_modules()), dict(untouched.named_modules())
    assert {name: type(module) for name, module in left.items()} == {n: type(m) for n, m in expected.items()}
    for name, module in left.items():
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert not module._backward_hooks, name
        assert not {key for key, value in vars(module).items() if callable(value)} - set(vars(expected[name])), name
    assert not hasattr(model, "peft_config")


def test_unloading_keeps_the_trained_head_as_peft_does(
    build_network, build_backbone, build_batch, logits_of, some_case
):
    """PEFT hands back modules_to_save as they were trained; everything else is the backbone's."""
    network = build_network(some_case, "classifier")
    heads = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): p.clone()
        for name, p in network.named_parameters()
        if "modules_to_save" in name
    }
    after = _states(network.unload())
    assert_identical(_states(build_backbone(some_case, "classifier")) | heads, after)


def test_an_unloaded_backbone_takes_a_new_adapter(build_network, build_config, build_batch, logits_of, randomize, case):
    network = build_network(case)
    expected = logits_of(network, build_batch(case))
    backbone = build_network(case, prompt_layers="search").unload()
    again = get_peft_model(backbone, build_config(case))
    randomize(again)
    assert torch.equal(logits_of(again.eval(), build_batch(case)), expected)


def test_merging_is_refused(build_network, bert):
    with pytest.raises(ValueError, match="cannot be merged"):
        build_network(bert).merge_and_unload()
