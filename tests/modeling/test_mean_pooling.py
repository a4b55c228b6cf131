"""The mean-pooled classifier: its formula, saving and loading, and adapters on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from sptune import InputError, SPTConfig
from sptune.modeling.mean_pooling import MeanPooledClassifier, MeanPooledConfig

CONFIGS = {
    "bert": BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "llama": LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return CONFIGS[request.param]


@pytest.fixture
def backbone(config: PretrainedConfig) -> PreTrainedModel:
    return AutoModel.from_config(config).eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 40, (3, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_what_stands_before_the_text_arrives_by_either_name(
    backbone: PreTrainedModel, batch: dict[str, Tensor], name: str
) -> None:
    model = MeanPooledClassifier.from_backbone(backbone, num_labels=3)
    mask = torch.cat([torch.ones(3, 2, dtype=torch.long), batch["attention_mask"]], dim=1)

    def logits(**before: Any) -> Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=mask, **before).logits

    torch.manual_seed(0)
    states = [torch.randn(2, 3, 2, 2, 8) for _ in range(2)]
    caches = []
    for scale in (1, 5):
        cache = DynamicCache()
        for index, (keys, values) in enumerate(states):
            cache.update(scale * keys, scale * values, index)
        caches.append(cache)
    with torch.no_grad():
        assert not torch.allclose(logits(**{name: caches[0]}), logits(**{name: caches[1]}), atol=1e-4)


def test_a_backbone_that_takes_nothing_before_the_text_says_so(batch: dict[str, Tensor]) -> None:
    config = DebertaV2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = MeanPooledClassifier.from_backbone(AutoModel.from_config(config).eval(), num_labels=3)
    with pytest.raises(InputError, match="DebertaV2Model takes no keys and values"):
        model(**batch, past_key_values=DynamicCache())


def test_logits_are_the_head_on_the_mean_of_the_real_tokens(
    backbone: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    states = backbone(**batch).last_hidden_state
    before = {name: value.clone() for name, value in backbone.state_dict().items() if "pooler" not in name}
    model = MeanPooledClassifier.from_backbone(backbone, num_labels=3)
    outputs = model(**batch, labels=torch.tensor([0, 1, 2]))
    means = torch.stack([states[row, :length].mean(0) for row, length in enumerate((6, 4, 1))])
    expected = means @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2])))
    # The pretrained weights were not initialized again.
    assert all(torch.equal(value, model.backbone.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("problem_type", "size", "labels", "loss"),
    [
        (None, 3, torch.tensor([0, 2, 1]), functional.cross_entropy),
        (None, 1, torch.tensor([0.5, -2.0, 3.0]), lambda logits, labels: functional.mse_loss(logits[:, 0], labels)),
        (
            "regression",
            1,
            torch.tensor([1, 2, 3]),
            lambda logits, labels: functional.mse_loss(logits[:, 0], labels.float()),
        ),
        (None, 1, torch.tensor([[0.5], [-2.0], [3.0]]), functional.mse_loss),
        ("multi_label_classification", 3, torch.eye(3), functional.binary_cross_entropy_with_logits),
    ],
)
def test_the_loss_is_that_of_the_problem_type(
    backbone: PreTrainedModel, batch: dict[str, Tensor], problem_type: Any, size: int, labels: Tensor, loss: Any
) -> None:
    model = MeanPooledClassifier.from_backbone(backbone, num_labels=size, problem_type=problem_type)
    outputs = model(**batch, labels=labels)
    torch.testing.assert_close(outputs.loss, loss(outputs.logits, labels))


def test_no_mask_means_all_tokens_are_real(backbone: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    model = MeanPooledClassifier.from_backbone(backbone, num_labels=2)
    ids = batch["input_ids"]
    torch.testing.assert_close(
        model(input_ids=ids).logits, model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    )


@pytest.mark.parametrize("loader", [MeanPooledClassifier, AutoModelForSequenceClassification])
def test_saved_and_loaded_it_is_the_same(
    loader: type, backbone: PreTrainedModel, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = MeanPooledClassifier.from_backbone(backbone, id2label={0: "bad", 1: "good"})
    model.save_pretrained(tmp_path)
    loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MeanPooledConfig)
    assert loaded.config.label2id == {"bad": 0, "good": 1}
    torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits)


def test_attention_of_the_backbone_is_kept(config: PretrainedConfig) -> None:
    backbone = AutoModel.from_config(config, attn_implementation="eager")
    model = MeanPooledClassifier.from_backbone(backbone, num_labels=2)
    assert model.backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["spt", "lora"])
def test_adapters_train_the_head_and_load_again(
    kind: str, backbone: PreTrainedModel, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    targets = {"bert": ["query"], "gpt2": ["c_attn"], "llama": ["q_proj"]}[backbone.config.model_type]
    config = (
        SPTConfig(task_type="SEQ_CLS", prompt_layers=[1], bottleneck_dim=4)
        if kind == "spt"
        else LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False)
    )
    model = get_peft_model(MeanPooledClassifier.from_backbone(backbone, num_labels=3), config)
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any("classifier" in name for name in trained)
    assert all("classifier" in name or kind in name for name in trained)
    expected = model.eval()(**batch).logits
    model.save_pretrained(tmp_path)
    again = MeanPooledClassifier.from_backbone(model.unload().backbone, num_labels=3)
    loaded = PeftModel.from_pretrained(again, tmp_path).eval()
    torch.testing.assert_close(loaded(**batch).logits, expected)


def test_gradient_checkpointing_gives_the_same_gradients(backbone: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    config = SPTConfig(task_type="SEQ_CLS", prompt_layers=[0], bottleneck_dim=4)
    model = get_peft_model(MeanPooledClassifier.from_backbone(backbone, num_labels=3), config).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_number_of_classes_must_be_said(backbone: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="num_labels or id2label"):
        MeanPooledClassifier.from_backbone(backbone)
