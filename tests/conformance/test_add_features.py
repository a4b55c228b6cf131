"""What transformers and its neighbors do with a model goes with prompts that are added to the tokens, and agrees.

Packed batches, caches, kinds of generation and of attention, 8- and 4-bit weights, compiled and split models.
"""

import copy
import importlib.metadata
import itertools

import pytest
import torch
import transformers
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from datasets import Dataset
from peft import PeftModel, get_peft_model, inject_adapter_in_model, prepare_model_for_kbit_training
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import peft as transformers_peft
from trl import SFTConfig, SFTTrainer

from conformance.families import BY_NAME, FAMILIES, HIDDEN_SIZE, NUM_LAYERS
from sptune import ActivationCacheSettings, SPTConfig, SPTTrainer
from sptune.errors import InputError
from sptune.training.caching_trainer import ActivationCachingTrainer

LENGTHS = (9, 5, 7)
NEW_TOKENS = {"max_new_tokens": 12, "do_sample": False}
# Full and sliding windows of 6 tokens, rotary and absolute positions.
DECODERS = ["llama", "mistral", "gemma3", "gpt2"]


@pytest.fixture
def attach(randomize):
    """``attach(model, family=None, **options)``: a network with random prompts, in evaluation mode."""

    def build(model, **options):
        network = get_peft_model(model, SPTConfig(**{"task_type": None, "prompt_layers": [1, 3], **options}))
        randomize(network)
        return network.eval()

    return build


def _logits(network, batch):
    with torch.no_grad():
        return network(**batch).logits


def _texts(family, lengths=LENGTHS):
    batch = family.batch(lengths)
    return [row[:length] for row, length in zip(batch["input_ids"], lengths, strict=True)]


def _packed(texts):
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    return {"input_ids": torch.cat(texts)[None], "position_ids": positions[None]}


# -- packed and padding-free batches


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_packed_texts_are_each_alone(attach, name, attention):
    family = BY_NAME[name]
    network, texts = attach(family.build(attn_implementation=attention)), _texts(family)
    together = _logits(network, {**_packed(texts), "use_cache": False})[0].split(LENGTHS)
    for text, logits in zip(texts, together, strict=True):
        torch.testing.assert_close(logits, _logits(network, {"input_ids": text[None]})[0], atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(transformers.__version__ < "5", reason="BERT takes no masks of four dimensions there")
def test_packed_texts_of_an_encoder_are_each_alone(attach):
    family = BY_NAME["bert"]
    network, texts = attach(family.build()), _texts(family)
    number = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))
    mask = torch.zeros(1, 1, sum(LENGTHS), sum(LENGTHS)).masked_fill(number[:, None] != number, float("-inf"))
    together = _logits(network, {**_packed(texts), "attention_mask": mask})[0].split(LENGTHS)
    for text, logits in zip(texts, together, strict=True):
        torch.testing.assert_close(logits, _logits(network, {"input_ids": text[None]})[0], atol=1e-5, rtol=1e-4)


class Losses(TrainerCallback):
    """Keeps the training loss of every step."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.values += [logs["loss"]] if "loss" in logs else []


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_flattening_collator_trains_on_each_text_alone(attach, name, tmp_path):
    family, runs = BY_NAME[name], []
    texts = [text.tolist() for text in _texts(family, (9, 5, 7, 6, 8, 4))]
    rows = Dataset.from_list([{"input_ids": text, "labels": text} for text in texts])
    arguments = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "learning_rate": 1e-3, "max_steps": 6}
    arguments |= {"per_device_train_batch_size": 3, "save_strategy": "no", "seed": 0}
    for activation_cache in (None, ActivationCacheSettings()):
        network, losses = attach(family.build(use_cache=False), prompt_layers=[2]), Losses()
        trainer = SPTTrainer(
            network,
            TrainingArguments(str(tmp_path), **arguments),
            train_dataset=rows,
            data_collator=DataCollatorWithFlattening(),
            activation_cache=activation_cache,
            callbacks=[losses],
        )
        first = next(iter(trainer.get_train_dataloader()))
        assert first["input_ids"].shape[0] == 1
        trainer.train()
        runs.append(losses.values)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    network = attach(family.build(use_cache=False), prompt_layers=[2])
    words = [torch.tensor([text]) for text in texts]
    with torch.no_grad():
        alone = [network(input_ids=text, labels=text).loss * (text.shape[1] - 1) for text in words]
        flat = DataCollatorWithFlattening(return_position_ids=True)([{"input_ids": t, "labels": t} for t in texts])
        together = network(**{key: torch.as_tensor(value) for key, value in flat.items()}).loss
    torch.testing.assert_close(together, sum(alone) / sum(text.shape[1] - 1 for text in words), atol=1e-5, rtol=1e-5)


def test_trls_trainer_packs_plain_text(attach, tmp_path):
    lines = ["the plot is a mess", "never ends and begins again", "joy that never ends"]
    words = ["<pad>", "<s>", "</s>", *dict.fromkeys(" ".join(lines).split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    options = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1}
    options |= {"packing": True, "max_length": 24, "max_steps": 12, "learning_rate": 1e-2}
    prompts = SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1, 3], bottleneck_dim=8)
    network = get_peft_model(BY_NAME["llama"].build(), prompts)
    trainer = SFTTrainer(
        network,
        SFTConfig(str(tmp_path), gradient_checkpointing=False, **options),
        train_dataset=Dataset.from_dict({"text": lines * 8}),
        processing_class=fast,
    )
    assert len(trainer.train_dataset) < 24  # rows hold several lines
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]


class Flat(nn.Module):
    """A block for padding-free batches: states (tokens, d), and where each text begins."""

    def __init__(self, hidden_size):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states, starts=None):
        return (hidden_states + torch.tanh(self.dense(hidden_states)),)


class FlatModel(nn.Module):
    """Runs `Flat` blocks on states of any shape (..., d)."""

    def __init__(self):
        super().__init__()
        self.config = copy.copy(BY_NAME["bert"].build().config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(Flat(HIDDEN_SIZE) for _ in range(NUM_LAYERS))

    def forward(self, hidden_states, starts=None):
        for layer in self.layers:
            hidden_states = layer(hidden_states, starts)[0]
        return hidden_states


@pytest.mark.parametrize("generator", ["bottleneck", "static"])
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_states_without_a_batch_dimension(attach, prompt_layers, generator):
    network = attach(FlatModel(), prompt_layers=prompt_layers, generator=generator)
    states = torch.randn(21, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(states), network(states[None])[0], atol=1e-6, rtol=1e-6)
    if prompt_layers == "search":
        with network.base_model.gating(torch.rand(1, len(network.base_model.generator_layers))):
            torch.testing.assert_close(network(states), network(states[None])[0], atol=1e-6, rtol=1e-6)
        # Rows of a padding-free batch are gone, so they can have no gates of their own.
        with (
            network.base_model.gating(torch.rand(3, len(network.base_model.generator_layers))),
            pytest.raises(InputError, match=r"or \(1, 4\)"),
        ):
            network(states)


# -- generation


KINDS = {
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "assisted by the backbone": {"assistant_model": True},
    "beams": {"num_beams": 3},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 3},
    "guidance": {"guidance_scale": 1.5},
}
# Transformers assists one text at a time; version 4 of it counts padding when it reads a prompt in pieces.
ALONE = ("prompt lookup", "assisted by the backbone", "chunked prefill")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_generation_of_every_kind_is_uncached(attach, name, kind):
    family, options = BY_NAME[name], KINDS[kind]
    network = attach(family.build(), task_type="CAUSAL_LM")
    batch = family.batch((9, 5) if family.pads_left else (9, 9), side="left")
    if kind in ALONE:
        batch = {key: value[:1] for key, value in batch.items()}
    plain = {key: value for key, value in options.items() if key in ("num_beams", "guidance_scale")}
    expected = network.generate(**batch, use_cache=False, **plain, **NEW_TOKENS)
    if "assistant_model" in options:
        options = {"assistant_model": family.build()}
    assert torch.equal(network.generate(**batch, **options, **NEW_TOKENS), expected)
    with network.disable_adapter():
        assert not torch.equal(network.generate(**batch, **plain, use_cache=False, **NEW_TOKENS), expected)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_search_network_generates_from_any_cache(attach, name):
    family = BY_NAME[name]
    network, batch = attach(family.build(), prompt_layers="search", task_type="CAUSAL_LM"), family.batch((9, 9))
    expected = network.generate(**batch, use_cache=False, **NEW_TOKENS)
    for options in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}):
        assert torch.equal(network.generate(**batch, **options, **NEW_TOKENS), expected)


def test_it_assists_its_backbone(attach):
    family = BY_NAME["llama"]
    network, batch = attach(family.build(), task_type="CAUSAL_LM"), family.batch((9,))
    bare = family.build()
    expected = bare.generate(**batch, **NEW_TOKENS)
    assert torch.equal(bare.generate(**batch, assistant_model=network, **NEW_TOKENS), expected)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantized_cache_is_that_of_the_backbone(attach, backend):
    pytest.importorskip({"quanto": "optimum.quanto", "hqq": "hqq"}[backend])
    family = BY_NAME["llama"]
    options = {"cache_implementation": "quantized", "cache_config": {"backend": backend, "q_group_size": 16}}
    batch, bare = family.batch((9,)), family.build()
    expected = bare.generate(**batch, **options, **NEW_TOKENS)
    fresh = get_peft_model(family.build(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1, 3])).eval()
    assert torch.equal(fresh.generate(**batch, **options, **NEW_TOKENS), expected)
    network = attach(family.build(), task_type="CAUSAL_LM")
    assert not torch.equal(network.generate(**batch, **options, **NEW_TOKENS), expected)


# -- kinds of attention


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_block_gets_what_the_model_passed_but_for_the_states(attach, family):
    """Masks, positions, caches and lengths of whatever kind of attention are the very objects the model made.

    Flash attention does not run on a CPU; nothing that it reads is touched.
    """
    network, passed, got = attach(family.build(), layers_path=family.layers_path), [], []
    block = network.base_model.backbone.layers[1]
    block.register_forward_pre_hook(lambda module, args, kwargs: passed.append((args, kwargs)), with_kwargs=True)
    block.base_layer.register_forward_pre_hook(
        lambda module, args, kwargs: got.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        network(**family.batch())
    ((args, kwargs),), ((block_args, block_kwargs),) = passed, got
    assert len(block_args) == len(args)
    assert list(block_kwargs) == list(kwargs)
    before = {**dict(enumerate(args)), **kwargs}
    after = {**dict(enumerate(block_args)), **block_kwargs}
    changed = [name for name in before if after[name] is not before[name]]
    assert len(changed) == 1
    assert after[changed[0]].shape == before[changed[0]].shape


@pytest.mark.parametrize("name", ["llama", "gemma3", "modernbert"])
def test_flex_attention_is_eager_attention(attach, name):
    family = BY_NAME[name]
    batch = family.batch()
    try:
        flexible = family.build(attn_implementation="flex_attention")
    except ValueError as error:
        pytest.skip(f"this version of transformers: {error}")
    with torch.compiler.set_stance("force_eager"):  # transformers compiles it, which takes long
        flexed = _logits(attach(flexible), batch)
    eager = _logits(attach(family.build(attn_implementation="eager")), batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(flexed[real], eager[real], atol=1e-5, rtol=1e-5)


# -- numbers of few bits


class Int8Linear(nn.Module):
    """A frozen linear layer with 8-bit weights and a scale for each row, as quantizers have them."""

    def __init__(self, dense):
        super().__init__()
        scale = dense.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (dense.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, states):
        return states @ (self.weight.to(states.dtype) * self.scale.to(states.dtype)).T


def _with_8_bit_weights():
    model = BY_NAME["llama"].build()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, Int8Linear(module))
    return model


def _quantized_by(kind, folder):
    """A function that loads a tiny Llama with weights that a quantizer of transformers has made."""
    if kind == "int8, by hand":
        return _with_8_bit_weights
    package = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "quanto": "optimum.quanto"}[kind.split()[0]]
    pytest.importorskip(package)
    from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

    BY_NAME["llama"].build(hidden_size=64, intermediate_size=128).save_pretrained(folder)

    def config():
        if kind == "bitsandbytes 8":
            return BitsAndBytesConfig(load_in_8bit=True)
        if kind == "bitsandbytes 4":
            return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        if kind.startswith("quanto"):
            return QuantoConfig(weights=f"int{kind[-1]}")
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig() if kind == "torchao 8" else IntxWeightOnlyConfig(torch.int4))

    def load():
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config(), device_map="cpu", dtype=torch.float32
        ).eval()

    return load


QUANTIZED = pytest.mark.parametrize(
    "kind", ["int8, by hand", "torchao 8", "torchao 4", "bitsandbytes 8", "bitsandbytes 4", "quanto 8", "quanto 4"]
)


@QUANTIZED
def test_quantized_weights_are_a_backbone_like_any_other(kind, tmp_path):
    load = _quantized_by(kind, tmp_path / "backbone")
    batch = BY_NAME["llama"].batch((9, 9))
    bare = _logits(load(), batch)
    network = get_peft_model(load(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1, 3]))
    assert torch.equal(_logits(network.eval(), batch), bare)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    network = get_peft_model(load(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1, 3])).train()
    losses = _train(network, batch)
    assert losses[-1] < 0.95 * losses[0]
    network.eval().save_pretrained(tmp_path / "adapter")
    expected = _logits(PeftModel.from_pretrained(load(), tmp_path / "adapter").eval(), batch)
    assert (expected - bare).abs().max() > 0.05
    if kind != "bitsandbytes 4":  # in evaluation it multiplies at lower precision than in training, on some CPUs
        torch.testing.assert_close(_logits(network, batch), expected)
    shorter = get_peft_model(load(), SPTConfig(prompt_layers=[1]), autocast_adapter_dtype=False)
    assert all(parameter.is_floating_point() for parameter in shorter.parameters() if parameter.requires_grad)
    _logits(shorter.eval(), batch)


def _train(network, batch, steps=6):
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = network(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@QUANTIZED
def test_quantized_weights_made_ready_for_training(kind, tmp_path):
    load = _quantized_by(kind, tmp_path / "backbone")
    batch = BY_NAME["llama"].batch((9, 9))
    model = prepare_model_for_kbit_training(load()) if kind != "int8, by hand" else load()
    losses = _train(get_peft_model(model, SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1, 3])).train(), batch)
    assert losses[-1] < 0.95 * losses[0]


def test_4_bit_weights_pass_gradients_after_an_evaluation(tmp_path):
    load = _quantized_by("bitsandbytes 4", tmp_path / "backbone")
    batch, gradients = BY_NAME["llama"].batch((9, 9)), []
    for evaluating in (False, True):
        torch.manual_seed(0)
        network = get_peft_model(load(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1], init_weights=False))
        network.train()
        if evaluating:
            _logits(network.eval(), batch)
            network.train()
        network(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)


def test_4_bit_weights_repacked_for_inference_are_not_trained_on(tmp_path):
    load = _quantized_by("bitsandbytes 4", tmp_path / "backbone")
    network = get_peft_model(load(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1]))
    if not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in network.modules()):
        pytest.skip("bitsandbytes repacks nothing on this CPU")
    _logits(network.eval(), BY_NAME["llama"].batch((9, 9)))
    with pytest.raises(InputError, match="call train\\(\\) before its first forward"):
        network.train()


@QUANTIZED
def test_the_activation_cache_keeps_the_states_of_quantized_layers(kind, tmp_path):
    load = _quantized_by(kind, tmp_path / "backbone")
    rows = [{"input_ids": text.tolist(), "labels": text.tolist()} for text in _texts(BY_NAME["llama"], (6,) * 8)]
    runs = []
    settings = (None, ActivationCacheSettings(), ActivationCacheSettings(memory=0, folder=str(tmp_path)))
    for activation_cache in settings:
        torch.manual_seed(0)
        network = get_peft_model(load(), SPTConfig(task_type="CAUSAL_LM", prompt_layers=[2], init_weights=False))
        losses = Losses()
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
        )
        try:
            trainer = ActivationCachingTrainer(
                network, arguments, train_dataset=rows, activation_cache=activation_cache, callbacks=[losses]
            )
        except ValueError as error:
            pytest.skip(f"transformers' Trainer: {error}")
        if activation_cache is not None:
            assert trainer.plan_activation_cache().dtype == torch.float32
        trainer.train()
        runs.append(losses.values)
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "modernbert"])
def test_backbones_of_half_precision_have_float32_generators(attach, name, dtype):
    family = BY_NAME[name]
    batch, network, seen = family.batch((9, 9)), attach(family.build().to(dtype)), []
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    network.base_model.backbone.layers[1].base_layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).dtype), with_kwargs=True
    )
    logits = network(**batch).logits
    assert set(seen) == {dtype}
    expected = _logits(attach(family.build()), batch)
    torch.testing.assert_close(logits.float(), expected, atol=0.15, rtol=0.1)
    logits.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in network.parameters() if p.requires_grad)
    after = attach(family.build()).to(dtype)  # `model.half()` takes the generators along
    torch.testing.assert_close(_logits(after, batch).float(), expected, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_autocast(attach, name, prompt_layers):
    family = BY_NAME[name]
    batch, network = family.batch((9, 9)), attach(family.build(), prompt_layers=prompt_layers)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(**batch).logits
    torch.testing.assert_close(logits.float(), _logits(network, batch), atol=0.15, rtol=0.1)
    logits.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in network.parameters() if p.requires_grad)


# -- compiled models


@pytest.fixture
def compiled():
    """``compiled(network)``: it compiled as one graph, and how many graphs there have been."""
    torch._dynamo.reset()

    def build(network):
        counter = CompileCounter()
        return torch.compile(network, backend=counter, fullgraph=True), counter

    return build


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_compiled_gates_are_those_of_the_call(attach, compiled, name):
    family = BY_NAME[name]
    network = attach(family.build(), prompt_layers="search", candidate_layers=[0, 1, 2, 3])
    (fast, graphs), batch = compiled(network), family.batch((9, 9, 9))
    results = []
    for seed in range(2):
        network.base_model.set_gate_values(torch.rand(4, generator=torch.Generator().manual_seed(seed)))
        results.append(_logits(fast, batch))
        torch.testing.assert_close(results[-1], _logits(network, batch), atol=1e-5, rtol=1e-5)
    assert graphs.frame_count == 1
    for seed in range(2):
        gates = torch.rand(3, NUM_LAYERS, generator=torch.Generator().manual_seed(seed))
        with network.base_model.gating(gates):
            results.append(_logits(fast, batch))
            torch.testing.assert_close(results[-1], _logits(network, batch), atol=1e-5, rtol=1e-5)
    assert graphs.frame_count == 2  # other values need no other graph
    with network.base_model.prompting_at([2]):
        results.append(_logits(fast, batch))
        torch.testing.assert_close(results[-1], _logits(network, batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_logits(fast, batch), results[1])
    for one, other in itertools.pairwise(results):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "modernbert"])
def test_compiled_final_networks_train_and_change_shape(attach, compiled, name):
    family = BY_NAME[name]
    network = attach(family.build())
    fast, _ = compiled(network)
    for lengths in ((9, 9), (6, 5, 6)):
        gradients = []
        for run in (network, fast):
            network.zero_grad()
            run(**family.batch(lengths)).logits.square().mean().backward()
            gradients.append({name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad})
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    with network.disable_adapter():
        assert torch.equal(_logits(fast, family.batch()), _logits(family.build(), family.batch()))


def test_blocks_are_compiled_one_by_one(attach):
    torch._dynamo.reset()
    family = BY_NAME["llama"]
    network, batch = attach(family.build()), family.batch((9, 9))
    expected = _logits(network, batch)
    for block in network.base_model.backbone.layers:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(_logits(network, batch), expected, atol=1e-5, rtol=1e-5)


def test_compiled_training_leaves_the_activation_cache_off(attach, tmp_path):
    rows = [{"input_ids": text.tolist(), "labels": text.tolist()} for text in _texts(BY_NAME["llama"], (6,) * 8)]
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", torch_compile=True)
    network = attach(BY_NAME["llama"].build(), prompt_layers=[2])
    plan = ActivationCachingTrainer(network, arguments, train_dataset=rows).plan_activation_cache()
    assert "torch.compile" in str(plan)


# -- models that are split over devices


def _offloaded(model, folder):
    """The model with layers 1 and 3 on disk, which accelerate's hooks bring back for each call."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer in (1, 3) else "cpu" for layer in range(NUM_LAYERS)}
    if isinstance(model, PeftModel):
        places = {f"base_model.model.{name}": place for name, place in places.items()}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.fixture
def adapter(attach, tmp_path):
    """An adapter of a tiny Llama and the logits with it: ``(folder, batch, logits)``."""
    network, batch = attach(BY_NAME["llama"].build()), BY_NAME["llama"].batch((9, 9))
    network.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", batch, _logits(network, batch)


def test_an_offloaded_backbone(adapter, tmp_path):
    folder, batch, expected = adapter
    network = PeftModel.from_pretrained(_offloaded(BY_NAME["llama"].build(), tmp_path / "disk"), folder)
    torch.testing.assert_close(_logits(network.eval(), batch), expected)
    bare = _logits(BY_NAME["llama"].build(), batch)
    with network.disable_adapter():
        assert torch.equal(_logits(network, batch), bare)
    network = get_peft_model(_offloaded(BY_NAME["llama"].build(), tmp_path / "disk"), SPTConfig(prompt_layers=[1, 3]))
    assert torch.equal(_logits(network, batch), bare)
    losses = _train(network.train(), batch)
    assert losses[-1] < losses[0]
    assert torch.equal(_logits(network.unload(), batch), bare)


def test_a_network_is_offloaded_with_its_prompts(adapter, tmp_path):
    folder, batch, expected = adapter
    network = PeftModel.from_pretrained(BY_NAME["llama"].build(), folder).eval()
    torch.testing.assert_close(_logits(_offloaded(network, tmp_path / "disk"), batch), expected)


def test_rows_with_adapters_of_their_own_in_an_offloaded_network(attach, randomize, tmp_path):
    network, batch = attach(BY_NAME["llama"].build()), BY_NAME["llama"].batch()
    network.add_adapter("other", SPTConfig(prompt_layers=[1, 2], modules_to_save=["lm_head"]))
    network.set_adapter("other")
    randomize(network, 7)
    names = ["other", "default", "__base__"]
    with torch.no_grad():
        expected = network(**batch, adapter_names=names).logits
        offloaded = _offloaded(network, tmp_path / "disk")
        torch.testing.assert_close(offloaded(**batch, adapter_names=names).logits, expected)


def test_hooks_on_wrapped_blocks_do_not_lead_past_the_prompts(adapter):
    folder, batch, expected = adapter
    model = BY_NAME["llama"].build()
    for block in model.model.layers:
        add_hook_to_module(block, AlignDevicesHook("cpu"))
    network = PeftModel.from_pretrained(model, folder).eval()
    for block in network.base_model.backbone.layers:
        add_hook_to_module(block, AlignDevicesHook("cpu"))
    torch.testing.assert_close(_logits(network, batch), expected)
    remove_hook_from_submodules(network.base_model.backbone.base_model)
    torch.testing.assert_close(_logits(network, batch), expected)


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_prompts_are_on_the_device_of_their_block(prompt_layers):
    model, batch = BY_NAME["llama"].build(), BY_NAME["llama"].batch((9, 9))
    for module in (*model.model.layers[2:], model.model.norm, model.lm_head):  # meta stands for a second device
        add_hook_to_module(module.to("meta"), AlignDevicesHook("meta"))
    network = get_peft_model(model, SPTConfig(prompt_layers=prompt_layers)).eval()
    for name, parameter in network.named_parameters():
        if "spt_" in name:
            assert (parameter.device.type == "meta") == ("layers.2" in name or "layers.3" in name), name
    assert _logits(network, batch).device.type == "meta"
    if prompt_layers == "search":
        gates = torch.rand(2, len(network.base_model.generator_layers))
        with network.base_model.gating(gates):
            assert _logits(network, batch).device.type == "meta"


# -- transformers' own adapters


def test_prompts_injected_into_a_model(adapter):
    _, batch, _ = adapter
    bare = _logits(BY_NAME["llama"].build(), batch)
    model = inject_adapter_in_model(SPTConfig(prompt_layers=[1, 3]), BY_NAME["llama"].build()).eval()
    assert type(model) is type(BY_NAME["llama"].build())
    assert torch.equal(_logits(model, batch), bare)
    losses = _train(model, batch)
    assert losses[-1] < losses[0]


def test_adapters_of_transformers(adapter):
    minimum = tuple(map(int, transformers_peft.MIN_PEFT_VERSION.split(".")))
    if tuple(map(int, importlib.metadata.version("peft").split(".")[:3])) < minimum:
        pytest.skip(f"this version of transformers wants PEFT {transformers_peft.MIN_PEFT_VERSION}")
    folder, batch, expected = adapter
    bare = _logits(BY_NAME["llama"].build(), batch)
    model = BY_NAME["llama"].build()
    model.add_adapter(SPTConfig(prompt_layers=[2]), "fresh")
    assert torch.equal(_logits(model.eval(), batch), bare)
    losses = _train(model, batch)
    assert losses[-1] < losses[0]
    model.load_adapter(str(folder), "saved")
    model.set_adapter("saved")
    torch.testing.assert_close(_logits(model.eval(), batch), expected)
    model.disable_adapters()
    assert torch.equal(_logits(model, batch), bare)
    model.enable_adapters()
    model.set_adapter("saved")
    torch.testing.assert_close(_logits(model, batch), expected)
