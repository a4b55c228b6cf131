"""What users do with an adapter that PEFT's own tests do not ask: of SPT and of LoRA in the same words."""

import copy
import inspect
import io
import pickle
import re

import peft
import pytest
import torch
from peft import PeftModel, functional, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting, rescale_adapter_scale, update_signature
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from settings import METHODS
from tiny_models import CLASSIFIERS, DECODERS

INPUTS = {"input_ids": torch.arange(5, 25).view(4, 5), "attention_mask": torch.ones(4, 5, dtype=torch.long)}
LABELS = torch.tensor([0, 1, 0, 1])
GREEDY = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


@pytest.fixture(params=["Bert", "DebertaV2", "Llama"])
def family(request):
    return request.param


def _config(method, **options):
    cls, settings = METHODS[method]
    if method == "LoRA":
        settings = {**settings, "init_lora_weights": False}  # SPT's start is no identity either
    return cls(**settings, **options)


def _classifier(family="Bert", **options):
    return AutoModelForSequenceClassification.from_pretrained(CLASSIFIERS[family], **options).eval()


def _decoder(family="Llama", **options):
    return AutoModelForCausalLM.from_pretrained(DECODERS[family], **options).eval()


def _randomize(model, adapter="default", seed=1):
    """Draw an adapter's weights, so that no two adapters do the same."""
    noise = torch.Generator().manual_seed(seed)
    own = re.compile(rf"\.(lora_\w|spt_\w+|modules_to_save)\.{re.escape(adapter)}(\.|$)")
    for name, parameter in model.named_parameters():
        if own.search(name):
            parameter.data = (torch.randn(parameter.shape, generator=noise) * 0.3).to(parameter.dtype)


def _adapted(method, backbone, **options):
    model = get_peft_model(backbone, _config(method, **options)).eval()
    _randomize(model)
    return model


def _with_two_adapters(method, backbone, **options):
    """A model with adapters "a", which is active, and "b"."""
    model = get_peft_model(backbone, _config(method, **options), adapter_name="a")
    model.add_adapter("b", _config(method, **options))
    _randomize(model, "a", seed=1)
    _randomize(model, "b", seed=2)
    return model.eval()


def _logits(model, **options):
    with torch.no_grad():
        return model(**INPUTS, **options).logits


def _trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# Weights


def test_weights_of_one_adapter_fit_another(method, family):
    model = _with_two_adapters(method, _classifier(family), task_type="SEQ_CLS")
    weights = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model, adapter_name="b").items()}
    model.set_adapter("b")
    wanted = _logits(model)
    assert not set_peft_model_state_dict(model, weights, adapter_name="a").unexpected_keys
    model.set_adapter("a")
    assert torch.equal(_logits(model), wanted)


def test_weights_of_other_shapes_are_refused_or_ignored_on_request(method):
    model = _adapted(method, _classifier())
    weights = {name: torch.zeros(3, 5) for name in get_peft_model_state_dict(model)}
    with pytest.raises(RuntimeError, match="size mismatch"):
        set_peft_model_state_dict(model, weights)
    before = _logits(model)
    with pytest.warns(UserWarning, match="mismatch"):
        set_peft_model_state_dict(model, weights, ignore_mismatched_sizes=True)
    assert torch.equal(_logits(model), before)


def test_missing_and_unexpected_weights_are_reported(method):
    model = _adapted(method, _classifier())
    weights = get_peft_model_state_dict(model)
    weights.pop(next(iter(weights)))
    weights["base_model.model.nowhere.weight"] = torch.zeros(1)
    result = set_peft_model_state_dict(model, weights)
    assert result.unexpected_keys == ["base_model.model.nowhere.weight"]
    assert len([name for name in result.missing_keys if "default" in name]) == 1


def test_the_state_dict_of_the_whole_model_is_enough(method):
    model = _with_two_adapters(method, _classifier(), task_type="SEQ_CLS")
    other = get_peft_model(_classifier(), _config(method, task_type="SEQ_CLS"), adapter_name="a")
    other.add_adapter("b", _config(method, task_type="SEQ_CLS"))
    other.load_state_dict(model.state_dict())
    for name in "ab":
        model.set_adapter(name)
        other.set_adapter(name)
        assert torch.equal(_logits(other.eval()), _logits(model))


def test_a_given_state_dict_is_what_is_saved(method, tmp_path):
    """As FSDP and DeepSpeed gather it."""
    model = _adapted(method, _classifier())
    model.save_pretrained(tmp_path, state_dict={name: tensor * 0 for name, tensor in model.state_dict().items()})
    loaded = PeftModel.from_pretrained(_classifier(), tmp_path)
    assert not any(tensor.any() for tensor in get_peft_model_state_dict(loaded).values())


def _stored(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _stored])
def test_a_copy_is_whole_and_independent(method, family, duplicate):
    model = _with_two_adapters(method, _classifier(family), task_type="SEQ_CLS")
    wanted = _logits(model)
    other = duplicate(model)
    assert torch.equal(_logits(other), wanted)
    _randomize(other, "a", seed=3)
    assert not torch.equal(_logits(other), wanted)
    other.set_adapter("b")
    other.delete_adapter("a")
    unloaded = other.unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in unloaded.modules())
    assert torch.equal(_logits(model), wanted)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_generates_by_itself(method, duplicate):
    model = _adapted(method, _decoder(), task_type="CAUSAL_LM")
    wanted = model.generate(**INPUTS, **GREEDY)
    other = duplicate(model)
    _randomize(model, seed=3)
    assert torch.equal(other.generate(**INPUTS, **GREEDY), wanted)


# Files


def test_auto_classes_find_backbone_and_task(method, tmp_path):
    decoder = _adapted(method, _decoder(), task_type="CAUSAL_LM")
    decoder.save_pretrained(tmp_path / "decoder")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert isinstance(loaded, peft.PeftModelForCausalLM)
    assert torch.equal(_logits(loaded), _logits(decoder))
    half = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "decoder", dtype=torch.bfloat16, is_trainable=True)
    assert half.get_base_model().dtype == torch.bfloat16
    assert _trainable(half) == _trainable(decoder)
    for task_type, auto_class in (("SEQ_CLS", peft.AutoPeftModelForSequenceClassification), (None, peft.AutoPeftModel)):
        classifier = _adapted(method, _classifier(), task_type=task_type)
        classifier.save_pretrained(tmp_path / str(task_type))
        assert torch.equal(_logits(auto_class.from_pretrained(tmp_path / str(task_type))), _logits(classifier))


@pytest.mark.parametrize("wanted", [True, False, "auto"])
def test_resized_embeddings_are_saved_along(method, tmp_path, wanted):
    def resized():
        backbone = _decoder()
        backbone.resize_token_embeddings(210)
        return backbone

    model = _adapted(method, resized(), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path, save_embedding_layers=wanted)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any("embed_tokens" in name for name in saved) == bool(wanted)
    if wanted:  # the new rows are drawn each time
        assert torch.equal(_logits(PeftModel.from_pretrained(resized(), tmp_path).eval()), _logits(model))


@pytest.mark.parametrize(
    "name", ["with-dash", "with space", "layer", "base_layer", "0", "spt_generator", "spt_gate", "modules_to_save"]
)
def test_an_adapter_may_have_any_name(method, tmp_path, name):
    model = get_peft_model(_classifier(), _config(method, task_type="SEQ_CLS"), adapter_name=name).eval()
    _randomize(model, name)
    model.save_pretrained(tmp_path)
    for loaded_as in (name, "other"):
        loaded = PeftModel.from_pretrained(_classifier(), tmp_path / name, adapter_name=loaded_as)
        assert torch.equal(_logits(loaded.eval()), _logits(model))


@pytest.fixture
def any_peft(monkeypatch):
    """Transformers 5.24 asks for a newer PEFT than there is."""
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)


def test_transformers_manages_adapters(method, tmp_path, any_peft):
    peft_model = _adapted(method, _classifier())
    peft_model.save_pretrained(tmp_path / "peft")
    wanted, base = _logits(peft_model), _logits(_classifier())
    model = _classifier()
    model.load_adapter(str(tmp_path / "peft"), adapter_name="loaded")
    model.add_adapter(_config(method), adapter_name="added")
    _randomize(model, "added", seed=2)
    added = _logits(model.eval())
    assert not torch.equal(added, wanted)
    model.save_pretrained(tmp_path / "added")
    model.set_adapter("loaded")
    assert model.active_adapters() == ["loaded"]
    assert torch.equal(_logits(model), wanted)
    model.disable_adapters()
    assert torch.equal(_logits(model), base)
    model.enable_adapters()
    model.delete_adapter("added")
    assert torch.equal(_logits(model), wanted)
    for folder, logits in (("peft", wanted), ("added", added)):
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(_logits(found.eval()), logits)


# Dtypes


@HALF
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_an_adapter_of_a_half_precision_backbone_trains_and_loads(method, family, tmp_path, low_cpu_mem_usage, dtype):
    model = _adapted(method, _classifier(family, dtype=dtype))
    output = model(**INPUTS, labels=LABELS)
    assert output.logits.dtype == dtype
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    model.save_pretrained(tmp_path)
    backbone = _classifier(family, dtype=dtype)
    loaded = PeftModel.from_pretrained(backbone, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(_logits(loaded.eval()), _logits(model))


@HALF
def test_a_model_changes_its_dtype_afterwards(method, family, dtype):
    model = _adapted(method, _classifier(family), task_type="SEQ_CLS").to(dtype)
    output = model(**INPUTS, labels=LABELS)
    assert torch.isfinite(output.logits).all()
    output.loss.backward()
    assert torch.isfinite(_logits(model.double())).all()


@HALF
def test_cast_mixed_precision_params_keeps_what_trains_in_float32(method, family, dtype):
    model = get_peft_model(_classifier(family), _config(method, task_type="SEQ_CLS"))
    peft.cast_mixed_precision_params(model, dtype)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    with torch.autocast("cpu", dtype=dtype):
        model(**INPUTS, labels=LABELS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_model_prepared_for_kbit_training_trains_its_adapter(method, family):
    backbone = peft.prepare_model_for_kbit_training(_classifier(family, dtype=torch.float16))
    model = get_peft_model(backbone, _config(method, task_type="SEQ_CLS")).train()
    model(**INPUTS, labels=LABELS).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == _trainable(model) != set()


# What trains


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_nothing_trains_in_inference_mode(method, task_type):
    assert not _trainable(get_peft_model(_classifier(), _config(method, inference_mode=True, task_type=task_type)))
    model = _with_two_adapters(method, _classifier(), task_type=task_type)
    model.set_adapter("b", inference_mode=True)
    assert not _trainable(model)


def test_set_requires_grad_is_for_the_adapters_named(method):
    model = _with_two_adapters(method, _classifier(), task_type="SEQ_CLS")
    of_a = _trainable(model)
    of_b = {name.replace(".a.", ".b.").removesuffix(".a") + (".b" if name.endswith(".a") else "") for name in of_a}
    model.set_requires_grad("b")
    assert _trainable(model) == of_a | of_b
    model.set_requires_grad(["a", "b"], False)
    assert not _trainable(model)


def test_a_second_adapter_or_a_name_taken_changes_nothing(method):
    model = get_peft_model(_classifier(), _config(method, task_type="SEQ_CLS"), adapter_name="a").eval()
    before, logits = _trainable(model), _logits(model)
    model.add_adapter("b", _config(method, task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("b", _config(method, task_type="SEQ_CLS"))
    assert _trainable(model) == before
    assert torch.equal(_logits(model), logits)
    assert list(model.peft_config) == ["a", "b"]


def test_training_goes_on_after_inference_mode_and_after_an_error(method, family):
    model = _adapted(method, _classifier(family), task_type="SEQ_CLS")
    with torch.inference_mode():
        wanted = model(**INPUTS).logits.clone()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 3), 10**6))
    with pytest.raises((IndexError, RuntimeError)):
        model(**INPUTS, labels=LABELS + 77)
    output = model(**INPUTS, labels=LABELS)
    torch.testing.assert_close(output.logits, wanted, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# What PEFT reports


def test_the_status_of_every_layer_is_told(method):
    model = _with_two_adapters(method, _classifier(), task_type="SEQ_CLS")
    layers = peft.get_layer_status(model)
    for layer in layers:
        assert layer.enabled
        assert layer.active_adapters == ["a"]
        assert layer.merged_adapters == []
        assert layer.requires_grad == {name: name == "a" for name in layer.available_adapters}
        assert layer.devices == {name: ["cpu"] for name in layer.available_adapters}
    status = peft.get_model_status(model)
    assert status.num_adapter_layers == len(layers)
    assert status.requires_grad == {"a": True, "b": False}
    assert status.devices == {"a": ["cpu"], "b": ["cpu"]}
    model.disable_adapter_layers()
    assert peft.get_model_status(model).enabled is False


def test_the_functional_interface(method):
    model = peft.inject_adapter_in_model(_config(method), _classifier(), adapter_name="a")
    model = peft.inject_adapter_in_model(_config(method), model, adapter_name="b").eval()
    _randomize(model, "a", seed=1)
    _randomize(model, "b", seed=2)
    functional.set_adapter(model, "a")
    first = _logits(model)
    functional.set_adapter(model, "b")
    second = _logits(model)
    assert not torch.equal(first, second)
    functional.delete_adapter(model, "a", prefix="lora_" if method == "LoRA" else "spt_")
    assert torch.equal(_logits(model), second)


def test_generate_keeps_its_signature(method):
    model = _adapted(method, _decoder(), task_type="CAUSAL_LM")
    update_signature(model, method="all")
    for generate in (model.generate, model.get_base_model().generate):
        assert "generation_config" in inspect.signature(generate).parameters
    assert "input_ids" in inspect.signature(model.forward).parameters


def test_without_input_dtype_casting(method):
    model = _adapted(method, _classifier())
    wanted = _logits(model)
    with disable_input_dtype_casting(model):
        assert torch.equal(_logits(model), wanted)
    assert torch.equal(_logits(model), wanted)


# What only LoRA can do


def _rescaled(model):
    with rescale_adapter_scale(model, 0.5):
        _logits(model)


def _swapped(model, folder):
    model.save_pretrained(folder)
    hotswap_adapter(model, str(folder / "a"), adapter_name="a")


MIXED = ["__base__", "a", "b", "a"]


def test_each_row_of_a_mixed_batch_has_its_adapter(method, family):
    if method == "LoRA" and family == "DebertaV2":
        pytest.skip("its relative positions pass LoRA's layers in a batch of one")
    model = _with_two_adapters(method, _classifier(family), task_type="SEQ_CLS")
    mixed = _logits(model, adapter_names=MIXED)
    for row, name in enumerate(MIXED[1:], start=1):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], _logits(model)[row], atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(mixed[0], _logits(model)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_each_row_of_a_mixed_batch_generates_with_its_adapter(method, beams):
    model = _with_two_adapters(method, _decoder(), task_type="CAUSAL_LM")
    mixed = model.generate(**INPUTS, **GREEDY, num_beams=beams, adapter_names=MIXED)
    for row, name in enumerate(MIXED[1:], start=1):
        model.set_adapter(name)
        assert torch.equal(mixed[row], model.generate(**INPUTS, **GREEDY, num_beams=beams)[row])


def test_mixed_batches_that_cannot_be_are_refused(method):
    model = _with_two_adapters(method, _classifier(), task_type="SEQ_CLS")
    with pytest.raises(ValueError, match="non-existing adapter"):
        _logits(model, adapter_names=["a", "nobody", "a", "b"])
    with pytest.raises(ValueError, match="training mode"):
        model.train()(**INPUTS, adapter_names=MIXED)


REFUSALS = {
    "add_weighted_adapter": (
        lambda model, folder: model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type="linear"),
        "add_weighted_adapter",
    ),
    "merge_and_unload": (lambda model, folder: model.merge_and_unload(), "cannot be merged"),
    "safe_merge": (lambda model, folder: model.merge_and_unload(safe_merge=True), "cannot be merged"),
    "merge_adapter": (lambda model, folder: model.merge_adapter(adapter_names=["b"]), "cannot be merged"),
    "convert_to_lora": (lambda model, folder: peft.convert_to_lora(model, rank=4), "(?i)convert|conversion"),
    "hotswap": (_swapped, "(?i)hotswap"),
    "compiled_hotswap": (lambda model, folder: prepare_model_for_compiled_hotswap(model, target_rank=8), "(?i)layers"),
    "rescale": (lambda model, folder: _rescaled(model), "only supported"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_spt_cannot_do_is_refused_and_changes_nothing(method, tmp_path, name):
    model = _with_two_adapters(method, _decoder(), task_type="CAUSAL_LM")
    action, words = REFUSALS[name]
    if method == "LoRA":
        if name != "convert_to_lora":  # from LoRA there is nothing to convert
            action(model, tmp_path)
        return
    before, generated = _logits(model), model.generate(**INPUTS, **GREEDY)
    with pytest.raises((NotImplementedError, TypeError, ValueError), match=words):
        action(model, tmp_path)
    assert torch.equal(_logits(model), before)
    assert torch.equal(model.generate(**INPUTS, **GREEDY), generated)
    assert list(model.peft_config) == ["a", "b"]
