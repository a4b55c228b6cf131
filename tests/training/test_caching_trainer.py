"""PEFT's methods on upper layers train with the activation cache as they do without."""

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    T5Config,
    T5ForSequenceClassification,
    T5ForTokenClassification,
    TrainerCallback,
    TrainingArguments,
)

from cached_training import Losses, build_examples
from sptune import ActivationCachingTrainer
from sptune.tasks import PaddingCollator
from sptune.training.caching.cache_settings import ActivationCacheSettings

UPPER = {
    "lora": lambda model: get_peft_model(
        model,
        LoraConfig(
            task_type="SEQ_CLS",
            r=4,
            target_modules=["query", "value", "q_proj", "v_proj"],
            layers_to_transform=[2, 3],
        ),
    ),
    "ia3": lambda model: get_peft_model(
        model,
        IA3Config(
            task_type="SEQ_CLS", target_modules=r".*\.[23]\..*\.(query|value|q_proj|v_proj)", feedforward_modules=[]
        ),
    ),
    "layer norms": lambda model: get_peft_model(
        model, LNTuningConfig(task_type="SEQ_CLS", target_modules=r".*\.[23]\..*([lL]ayer_?[nN]orm)")
    ),
    "blocks": lambda model: train_only(model, lambda name: True),
    "biases": lambda model: train_only(model, lambda name: "bias" in name),
}


def train_only(model, wanted):
    """Train the weights of layers 2 and 3 whose names are wanted, and the head."""
    for name, parameter in model.named_parameters():
        upper = any(f".{layer}." in name for layer in (2, 3))
        parameter.requires_grad_((upper and wanted(name)) or name.split(".")[0] in ("classifier", "score"))
    return model


def lowest_block(model):
    return next(one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == 4)[0]


@pytest.fixture
def train_upper(build_backbone, bert, tmp_path):
    """``train_upper(attach, activation_cache, case=bert, config={}, collator=None, examples=None, **options)``.

    Trains what ``attach(model)`` makes of a tiny classifier; gives the trainer, with ``losses`` and ``runs``: how often
    the lowest block ran in each epoch.
    """

    def train(attach, activation_cache, *, case=bert, config=(), collator=None, examples=None, model=None, **options):
        torch.manual_seed(3)
        network = attach(build_backbone(case, "classifier", **dict(config)) if model is None else model())
        usual = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1}
        silent = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "eval_strategy": "epoch"}
        args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, **{**usual, **silent, **options})
        examples, losses = build_examples(16) if examples is None else examples, Losses()
        trainer = ActivationCachingTrainer(
            network, args, train_dataset=examples, eval_dataset=examples[:6], activation_cache=activation_cache,
            data_collator=collator or PaddingCollator(0, left=False), callbacks=[losses],
        )  # fmt: skip
        trainer.losses, trainer.runs = losses, [0]
        inside = next(one for one in lowest_block(network).modules() if isinstance(one, torch.nn.Linear))
        inside.register_forward_hook(lambda *args: trainer.runs.__setitem__(-1, trainer.runs[-1] + 1))

        class NextEpoch(TrainerCallback):
            def on_epoch_end(self, args, state, control, **kwargs):
                trainer.runs.append(0)

        trainer.add_callback(NextEpoch())
        trainer.train()
        return trainer

    return train


def assert_cached_alike(train_upper, attach, *, rtol=1e-5, **options):
    """Losses and weights are the same with the cache, and layers below run for no text a second time."""
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    torch.testing.assert_close(
        torch.tensor(cached.losses.values), torch.tensor(plain.losses.values), rtol=rtol, atol=rtol * 1e-2
    )
    weights = dict(plain.model.named_parameters())
    for name, weight in cached.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=rtol, atol=rtol, msg=name)
    assert plain.runs[2] > 0
    assert cached.runs[2] == 0, "texts seen before leave the lower layers alone, in evaluation too"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", UPPER)
def test_methods_of_others_train_upper_layers_as_without_a_cache(train_upper, method, dropout):
    config = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    assert_cached_alike(train_upper, UPPER[method], config=config)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("method", ["lora", "ia3", "layer norms", "blocks"])
def test_methods_of_others_on_a_decoder(train_upper, llama, method, left):
    # Rotary positions are relative up to rounding, of which Adam makes much.
    options = {"learning_rate": 1e-4, "rtol": 1e-3} if left else {}
    options |= {"case": llama, "config": {"attention_dropout": 0.2}, "collator": PaddingCollator(0, left=left)}
    assert_cached_alike(train_upper, UPPER[method], **options)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", ["lora", "blocks"])
def test_gradient_checkpointing_goes_with_the_cache_of_other_methods(train_upper, method, reentrant):
    assert_cached_alike(
        train_upper, UPPER[method], gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}, config={"hidden_dropout_prob": 0.1},
    )  # fmt: skip


def test_bf16_goes_with_the_cache_of_other_methods(train_upper):
    assert_cached_alike(train_upper, UPPER["lora"], bf16=True, rtol=2e-2)


def test_weights_in_bfloat16_are_cached_as_they_are(train_upper):
    def attach(model):
        return UPPER["lora"](model.to(torch.bfloat16))

    assert_cached_alike(train_upper, attach)
    assert train_upper(attach, ActivationCacheSettings()).plan_activation_cache().dtype == torch.bfloat16


def test_weights_that_are_no_floating_numbers_do_not_choose_the_dtype(train_upper):
    """As in models quantized to 8 or 4 bits, whose first parameter may be of bytes."""

    def attach(model):
        model = UPPER["lora"](model)
        lowest_block(model).register_parameter("packed", torch.nn.Parameter(torch.zeros(2).byte(), requires_grad=False))
        block = lowest_block(model)
        block._parameters.move_to_end("packed", last=False) if hasattr(block._parameters, "move_to_end") else None
        return model

    assert train_upper(attach, ActivationCacheSettings()).plan_activation_cache().dtype == torch.float32
    assert_cached_alike(train_upper, attach)


def test_dropout_comes_back_after_training(train_upper):
    trainer = train_upper(UPPER["lora"], None, config={"hidden_dropout_prob": 0.1})
    trainer.model.train()
    assert all(module.training for module in trainer.model.modules())


def test_a_cached_training_evaluates_before_its_first_step(train_upper):
    assert_cached_alike(train_upper, UPPER["lora"], eval_on_start=True, config={"hidden_dropout_prob": 0.3})


def with_embeddings(model):
    model = UPPER["blocks"](model)
    model.get_input_embeddings().requires_grad_(True)
    return model


def with_lora_on_embeddings(model):
    """Its factors are in a `ParameterDict`, which is never called."""
    names = r".*word_embeddings|.*layer\.[23]\..*query"
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=names))


def with_trained_tokens(model):
    tokens = {"word_embeddings": list(range(5, 50))}
    return get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=2, layers_to_transform=[2, 3], trainable_token_indices=tokens)
    )


@pytest.mark.parametrize(
    ("attach", "reason"),
    [
        (lambda model: train_only(model, lambda name: False), "nothing is trained in the blocks"),
        (lambda model: get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)), "nothing"),
        (lambda model: get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2)), "layer 0 is trained"),
        (with_embeddings, "something below it is trained"),
        (with_lora_on_embeddings, "something below it is trained"),
        (with_trained_tokens, "something below it is trained"),
        (
            lambda model: get_peft_model(
                model, LoraConfig(task_type="SEQ_CLS", layers_to_transform=[2, 3], modules_to_save=["embeddings"])
            ),
            "something below it is trained",
        ),
        (
            lambda model: get_peft_model(
                model, LoraConfig(task_type="SEQ_CLS", layers_to_transform=[2], modules_to_save=["layer.1.attention"])
            ),
            "",
        ),
    ],
    ids=["head", "prompt tuning", "layer 0", "embeddings", "LoRA on embeddings", "tokens", "saved", "layer 1"],
)
def test_what_learns_below_is_not_cached(train_upper, attach, reason, caplog):
    caplog.set_level("INFO", logger="sptune")
    plain, cached = (train_upper(attach, cache) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    if reason:
        assert reason in caplog.text
        assert cached.runs[1] >= 4, "every step of the second epoch runs the lowest layer"


def test_relative_positions_that_learn_are_not_cached(train_upper, family_case, caplog):
    """DeBERTa's blocks use their weights, of a module that is never called."""

    def attach(model):
        UPPER["blocks"](model).deberta.encoder.rel_embeddings.requires_grad_(True)
        return model

    case = family_case("deberta-v3")
    plain, cached = (train_upper(attach, cache, case=case) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert "something below it is trained" in caplog.text


T5_SHAPE = {
    "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4, "num_labels": 3,
    "dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def test_blocks_that_pass_on_positions_are_not_cached(train_upper, caplog):
    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".block.2." in name or ".block.3." in name or "classifier" in name)
        return model

    def build():
        return T5ForTokenClassification(T5Config(**T5_SHAPE))

    examples = [{**row, "labels": [row["labels"]] * len(row["input_ids"])} for row in build_examples(16)]

    def collate(rows):
        batch = PaddingCollator(0, left=False)([{**row, "labels": 0} for row in rows])
        labels = [torch.tensor(row["labels"]) for row in rows]
        return {**batch, "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)}

    options = {"model": build, "examples": examples, "collator": collate}
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert "the blocks pass on more than hidden states" in caplog.text


def test_two_lists_of_blocks_are_not_cached(train_upper, caplog):
    caplog.set_level("INFO", logger="sptune")

    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".block.3." in name or "classification_head" in name)
        return model

    examples = [{**row, "input_ids": [*row["input_ids"], 1], "attention_mask": [1] * (len(row["input_ids"]) + 1)}
                for row in build_examples(8)]  # fmt: skip
    trainer = train_upper(
        attach, ActivationCacheSettings(), model=lambda: T5ForSequenceClassification(T5Config(**T5_SHAPE)),
        examples=examples,
    )  # fmt: skip
    assert "no single list of blocks" in caplog.text
    assert trainer.runs[1] > 0


def test_a_loss_of_the_experts_of_all_layers_is_computed(train_upper, decoder_shape, caplog):
    """With `output_router_logits` the loss depends on the routers of all layers."""
    config = MixtralConfig(**{**decoder_shape, "num_local_experts": 4, "output_router_logits": True})

    def build():
        return AutoModelForCausalLM.from_config(config)

    def attach(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".2." in name or ".3." in name)
        return model

    examples = [{**row, "labels": row["input_ids"]} for row in build_examples(16)]

    def collate(rows):
        batch = PaddingCollator(0, left=False)([{**row, "labels": 0} for row in rows])
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    options = {"model": build, "examples": examples, "collator": collate}
    plain, cached = (train_upper(attach, cache, **options) for cache in (None, ActivationCacheSettings()))
    assert cached.losses.values == pytest.approx(plain.losses.values, rel=1e-5)
    assert cached.runs[1] >= 4


def test_persistent_workers_of_an_earlier_training_pass_on_no_places_of_its_examples(train_upper):
    """Trainer keeps the data loaders of evaluation with their workers."""
    values = []
    for cache in (None, ActivationCacheSettings()):
        trainer = train_upper(
            UPPER["lora"], cache, dataloader_num_workers=1, dataloader_persistent_workers=True, num_train_epochs=1
        )
        trainer.train_dataset = build_examples(20)[12:]
        trainer.train()
        values.append(trainer.losses.values)
    assert values[1] == pytest.approx(values[0], rel=1e-5)
