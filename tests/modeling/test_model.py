"""What a PEFT or transformers user does with an adapter besides running it: Trainer, switching, files, imports."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_model_status, get_peft_model
from transformers import AutoConfig, AutoModel, Trainer, TrainerCallback, TrainingArguments

from assertions import assert_identical
from sptune import InputError, SPTConfig

HEADS = pytest.mark.parametrize("head", ["lm", "classifier"])


@pytest.fixture
def build_dataset(build_batch):
    """``build_dataset(case, head)``: eight short texts, labeled, without padding."""

    def build(case, head):
        batch = build_batch(case, (6,) * 8)
        rows = []
        for row, token_ids in enumerate(batch["input_ids"]):
            labels = token_ids.masked_fill(torch.arange(6) < 3, -100) if head == "lm" else torch.tensor(row % 3)
            rows.append({"input_ids": token_ids, "attention_mask": batch["attention_mask"][row], "labels": labels})
        return rows

    return build


@pytest.fixture
def build_trainer(build_backbone, build_config, build_dataset, tmp_path):
    """``build_trainer(case, head, ...)``: a transformers.Trainer of four steps over a fresh network."""

    def build(case, head, folder="run", prompt_layers=None, callbacks=(), **options):
        config = build_config(case, head, prompt_layers=[1, 3] if prompt_layers is None else prompt_layers)
        torch.manual_seed(5)
        network = get_peft_model(build_backbone(case, head), config)
        defaults = {
            "output_dir": str(tmp_path / folder),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "learning_rate": 5e-2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        arguments = TrainingArguments(**{**defaults, **options})
        data = build_dataset(case, head)
        return Trainer(network, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))

    return build


def _trained(network):
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


# Trainer


@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_trainer_lowers_the_loss_and_trains_everything_trainable(build_trainer, some_case, prompt_layers):
    head = "lm" if some_case.causal else "classifier"
    options = {"save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    trainer = build_trainer(some_case, head, prompt_layers=prompt_layers, **options)
    before, loss = _trained(trainer.model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    after = _trained(trainer.model)
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)


class BestIsFirst(TrainerCallback):
    """Lets the first evaluation win, so that the best model is not the last."""

    def __init__(self):
        self.worse = 0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_rank"] = self.worse
        self.worse += 1


@HEADS
def test_trainer_loads_the_best_model_at_the_end(build_trainer, build_backbone, build_batch, logits_of, llama, head):
    trainer = build_trainer(
        llama,
        head,
        callbacks=[BestIsFirst()],
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="rank",
        greater_is_better=False,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2")
    batch = build_batch(llama)
    logits = logits_of(trainer.model.eval(), batch)
    assert torch.equal(logits, logits_of(PeftModel.from_pretrained(build_backbone(llama, head), best), batch))
    last = PeftModel.from_pretrained(build_backbone(llama, head), best.replace("checkpoint-2", "checkpoint-4"))
    assert not torch.equal(logits, logits_of(last, batch))


@HEADS
@pytest.mark.parametrize("prompt_layers", ["search", [1, 3]], ids=str)
def test_trainer_resumes_where_it_stopped(build_trainer, llama, head, prompt_layers):
    whole = build_trainer(llama, head, prompt_layers=prompt_layers)
    whole.train()
    resumed = build_trainer(llama, head, "resumed", prompt_layers=prompt_layers)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert resumed.state.global_step == 4
    assert_identical(_trained(whole.model), _trained(resumed.model))


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}, {"use_reentrant": False}], ids=str)
def test_trainer_with_gradient_checkpointing_trains_the_same(build_trainer, some_case, kwargs):
    """Without `enable_input_require_grads`, and with whatever transformers takes by default."""
    head = "lm" if some_case.causal else "classifier"
    plain = build_trainer(some_case, head, save_strategy="no")
    plain.train()
    checkpointed = build_trainer(
        some_case, head, save_strategy="no", gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs
    )
    checkpointed.train()
    torch.testing.assert_close(_trained(checkpointed.model), _trained(plain.model), atol=1e-5, rtol=1e-4)


def test_trainer_accumulates_gradients(build_trainer, llama):
    whole = build_trainer(llama, "lm", save_strategy="no")
    whole.train()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    halves = build_trainer(llama, "lm", **options)
    halves.train()
    torch.testing.assert_close(_trained(halves.model), _trained(whole.model), atol=1e-4, rtol=1e-3)


# Status and counts


@HEADS
def test_trainable_parameters_are_printed(build_network, bert, head, capsys):
    network = build_network(bert, head)
    network.print_trainable_parameters()
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert f"trainable params: {trainable:,} " in capsys.readouterr().out


def test_the_status_names_prompts_as_adapter_layers(build_network, build_config, bert):
    network = build_network(bert, prompt_layers=[1, 3])
    network.add_adapter("other", build_config(bert, prompt_layers=[2]))
    status = get_model_status(network)
    assert status.peft_types == {"default": "SPT", "other": "SPT"}
    assert status.available_adapters == ["default", "other"]
    assert status.active_adapters == ["default"]
    assert status.enabled is True
    assert status.trainable_params == sum(p.numel() for p in network.parameters() if p.requires_grad)


# Several adapters


def test_switching_back_and_forth_changes_nothing(build_network, build_config, build_batch, logits_of, randomize, bert):
    network = build_network(bert)
    for seed, name in enumerate(("second", "third")):
        network.add_adapter(name, build_config(bert, prompt_layers=[seed]))
        network.set_adapter(name)
        randomize(network, seed)
    network.eval()
    names, batch = ("default", "second", "third"), build_batch(bert)

    def logits(name):
        network.set_adapter(name)
        return logits_of(network, batch)

    first = [logits(name) for name in names]
    again = [logits(name) for name in reversed(names)][::-1]
    assert all(map(torch.equal, first, again))
    assert len({tensor.sum().item() for tensor in first}) == 3


def test_two_active_adapters_are_refused(build_network, build_config, build_batch, bert):
    network = build_network(bert)
    network.add_adapter("other", build_config(bert))
    network.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"default.*other"):
        network(**build_batch(bert))


def test_mixed_models_are_refused(build_backbone, build_config, bert):
    with pytest.raises(ValueError, match=r"(?i)mixed|SPT"):
        get_peft_model(build_backbone(bert), build_config(bert), mixed=True)


# Files


def test_an_adapter_is_one_small_safetensors_file(build_network, bert, tmp_path):
    network = build_network(bert)
    network.save_pretrained(tmp_path)
    weights = {path.name for path in tmp_path.iterdir() if path.suffix in {".safetensors", ".bin", ".pt", ".pth"}}
    assert weights == {"adapter_model.safetensors"}
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * trainable + 4096


def test_saved_weights_are_exactly_the_trained_ones(build_network, bert, tmp_path):
    from safetensors.torch import load_file

    network = build_network(bert, "classifier", prompt_layers="search")
    network.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = _trained(network)
    assert sorted(tensor.numel() for tensor in saved.values()) == sorted(t.numel() for t in trained.values())
    assert sum(tensor.double().sum() for tensor in saved.values()).item() == pytest.approx(
        sum(tensor.double().sum() for tensor in trained.values()).item()
    )


def test_an_adapter_of_other_layers_is_not_loaded_in_silence(build_network, build_backbone, bert, tmp_path):
    """An adapter for more layers than the backbone has cannot be right."""
    build_network(bert, prompt_layers=[1, 3]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"3.*2 layers"):
        PeftModel.from_pretrained(build_backbone(bert, num_hidden_layers=2), tmp_path)


def test_the_base_model_is_named_in_the_configuration(build_backbone, build_config, bert, tmp_path):
    backbone = build_backbone(bert)
    backbone.save_pretrained(tmp_path / "backbone")
    loaded = type(backbone).from_pretrained(tmp_path / "backbone")
    get_peft_model(loaded, build_config(bert)).save_pretrained(tmp_path / "adapter")
    assert SPTConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == str(tmp_path / "backbone")


# Imports


def test_importing_sptune_again_registers_once():
    """In a fresh process, since a second import makes second classes."""
    program = """
import sys, importlib
import sptune
from peft import PeftType, PeftConfig
first = PeftType.SPT
importlib.reload(sptune)
for name in [name for name in sys.modules if name.split(".")[0] == "sptune"]:
    del sys.modules[name]
import sptune
assert PeftType.SPT is first and PeftType("SPT") is first
assert [member.name for member in PeftType].count("SPT") == 1
print(sptune.SPTConfig(prompt_layers="all").peft_type.value)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "SPT"


def test_registration_leaves_peft_types_as_they_were():
    from peft import PeftType

    assert PeftType("LORA") is PeftType.LORA
    assert PeftType("SPT") is PeftType.SPT
    assert "SPT" in PeftType.__members__


def test_lora_still_works_beside_sptune(build_backbone, build_batch, logits_of, bert):
    from peft import LoraConfig

    network = get_peft_model(build_backbone(bert), LoraConfig(target_modules=["query"], init_lora_weights=False))
    assert (logits_of(network, build_batch(bert)) - logits_of(build_backbone(bert), build_batch(bert))).abs().max() > 0


# Dropout


def test_dropout_of_the_frozen_backbone_stays_off(build_backbone, build_config, build_batch, bert):
    network = get_peft_model(build_backbone(bert, hidden_dropout_prob=0.3), build_config(bert))
    batch = build_batch(bert)
    expected = network.eval()(**batch).logits
    assert torch.equal(network.train()(**batch).logits, expected)


@pytest.mark.parametrize("model_type", ["opt", "bart"])
def test_dropout_stays_off_with_gradient_checkpointing(model_type):
    """Their blocks compute dropout themselves, and checkpoint gradients in training mode only."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "dropout": 0.3}
    options = {
        "opt": {"ffn_dim": 32, "layerdrop": 0.5, "word_embed_proj_dim": 16},
        "bart": {"d_model": 16, "encoder_layers": 3, "decoder_layers": 3, "encoder_layerdrop": 0.5},
    }
    backbone = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes, **options[model_type]))
    path = "encoder.layers" if model_type == "bart" else None
    network = get_peft_model(backbone, SPTConfig(prompt_layers=[1], layers_path=path))
    network.base_model.generator_parameters()[1][-1].data.normal_()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 2]])}
    expected = network.eval()(**batch)[0]
    network.gradient_checkpointing_enable({"use_reentrant": False})
    for _ in range(3):
        assert torch.allclose(network.train()(**batch)[0], expected, atol=1e-6)
    block = network.unload().get_submodule(path or "decoder.layers")[1]
    assert block.dropout == 0.3


def test_a_second_adapter_at_other_blocks_is_refused():
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 3, "num_heads": 4}
    backbone = AutoModel.from_config(AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0))
    network = get_peft_model(backbone, SPTConfig(prompt_layers=[1], layers_path="encoder.block"))
    with pytest.raises(InputError, match=r"layers_path='decoder\.block': this model has prompts at 'encoder\.block'"):
        network.add_adapter("decoder", SPTConfig(prompt_layers=[1], layers_path="decoder.block"))
    network.add_adapter("same", SPTConfig(prompt_layers=[2], layers_path="encoder.block"))


def test_a_second_adapter_saves_the_blocks_that_it_is_at(tmp_path):
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 3, "num_heads": 4}
    config = AutoConfig.for_model("t5", **sizes, decoder_start_token_id=0)
    network = get_peft_model(AutoModel.from_config(config), SPTConfig(prompt_layers=[1], layers_path="decoder.block"))
    network.add_adapter("second", SPTConfig(prompt_layers=[2]))
    network.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModel.from_config(config), tmp_path / "second")
    assert loaded.base_model.backbone.layers_name == "decoder.block"


def test_dropout_of_a_new_head_is_on_in_training_only(build_backbone, build_config, build_batch, bert):
    backbone = build_backbone(bert, "classifier", classifier_dropout=0.3)
    network, batch = get_peft_model(backbone, build_config(bert, "classifier")), build_batch(bert)
    network.train()
    assert not torch.equal(network(**batch).logits, network(**batch).logits)
    network.eval()
    assert torch.equal(network(**batch).logits, network(**batch).logits)


def test_an_unloaded_backbone_drops_out_in_training_again(build_backbone, build_config, build_batch, bert):
    network = get_peft_model(build_backbone(bert, hidden_dropout_prob=0.3), build_config(bert))
    network.train()
    model, batch = network.unload().train(), build_batch(bert)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
