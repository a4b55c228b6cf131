"""A sequence classifier for any backbone: a linear head on the masked mean of the text's final states."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from sptune.errors import InputError
from sptune.modeling.calls import CACHE_NAMES, argument_positions
from sptune.modeling.problem_types import REGRESSION, SINGLE_LABEL, problem_loss


class MeanPooledConfig(PretrainedConfig):
    """Configuration of a `MeanPooledClassifier`.

    Args:
        text_config: configuration of the backbone, or its content as a mapping.
        kwargs: as in every transformers configuration (`num_labels`, `id2label`, `label2id`, ...).
    """

    model_type = "sptune_mean_pooled"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(self, text_config: PretrainedConfig | dict[str, Any] | None = None, **kwargs: Any) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config: Any = text_config
        super().__init__(**kwargs)


class MeanPooledClassifier(PreTrainedModel):
    """logits = W (sum_t mask_t h_t / sum_t mask_t) + b, with h_t the backbone's final states.

    It loads, saves and takes adapters like any transformers sequence classifier; its head is named `classifier`.

    Args:
        config: names the backbone, which gets random weights; `from_backbone` takes a pretrained one.
    """

    config_class = MeanPooledConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: MeanPooledConfig) -> None:
        super().__init__(config)
        self.backbone = _without_pooler(AutoModel.from_config(config.text_config))
        self.classifier = nn.Linear(config.text_config.hidden_size, config.num_labels or 2)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        *,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        problem_type: str | None = None,
        **kwargs: Any,
    ) -> MeanPooledClassifier:
        """A classifier with a new head on a pretrained backbone.

        Args:
            backbone: hub id, folder, or a model without a head, as `AutoModel` returns it. Of a `MeanPooledClassifier`,
                its backbone is taken.
            num_labels: number of classes; not needed with `id2label`.
            id2label: names of the classes.
            problem_type: decides on the loss; None for "regression" with one class, else for exclusive classes.
            kwargs: passed to `AutoModel.from_pretrained`.

        Raises:
            ValueError: neither `num_labels` nor `id2label` was given.
        """
        if id2label is None:
            if num_labels is None:
                raise ValueError("from_backbone needs num_labels or id2label; give one of them.")
            id2label = {index: f"LABEL_{index}" for index in range(num_labels)}
        base: Any = backbone
        if not isinstance(base, PreTrainedModel):
            base = AutoModel.from_pretrained(base, **kwargs)
        name = base.name_or_path
        if isinstance(base, MeanPooledClassifier):
            base = base.backbone
        label2id = {label: index for index, label in id2label.items()}
        attention = base.config._attn_implementation
        options = {"problem_type": problem_type, "attn_implementation": attention}
        config = MeanPooledConfig(base.config, id2label=id2label, label2id=label2id, **options)
        with torch.device("meta"):
            model = cls(config)
        model.backbone = _without_pooler(base)
        model.classifier = nn.Linear(model.classifier.in_features, len(id2label), dtype=base.dtype)
        nn.init.normal_(model.classifier.weight, std=getattr(base.config, "initializer_range", 0.02))
        nn.init.zeros_(model.classifier.bias)
        model.classifier.to(base.device)
        model.name_or_path = name
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embeddings."""
        self.backbone.set_input_embeddings(value)

    def pool(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The mean of the final states over the real tokens: (batch, hidden)."""
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        else:
            kwargs["input_ids"] = input_ids
        states = self.backbone(attention_mask=attention_mask, **kwargs).last_hidden_state
        if attention_mask is None:
            return states.mean(dim=1)
        # Cached keys, such as prefix tuning's, are in the mask and have no states.
        weights = attention_mask[:, -states.shape[1] :].to(states).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (batch, classes), and their loss if `labels` are given; see `problem_loss` for the shape of these.

        `past_key_values` and `cache` are two names of the cached keys and values in front of the text.

        Raises:
            InputError: there are cached keys and values, and the backbone takes none.
        """
        optional = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        given = {name: value for name, value in optional.items() if value is not None}
        before = past_key_values if cache is None else cache
        if before is not None:
            given[self._cache_name()] = before
        kwargs.pop("return_dict", None)
        pooled = self.pool(input_ids, attention_mask, inputs_embeds, **given, **kwargs)
        logits = self.classifier(pooled)
        problem = self.config.problem_type or (REGRESSION if self.config.num_labels == 1 else SINGLE_LABEL)
        loss = None if labels is None else problem_loss(problem, logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _cache_name(self) -> str:
        """The name by which the backbone takes cached keys and values; under another name it might ignore them."""
        takes = argument_positions(self.backbone.forward)
        for name in CACHE_NAMES:
            if name in takes:
                return name
        raise InputError(
            f"{type(self.backbone).__name__} takes no keys and values in front of the text, which prefix tuning "
            "trains; use another method, or another backbone."
        )


def _without_pooler(backbone: Any) -> PreTrainedModel:
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    return backbone


AutoConfig.register(MeanPooledConfig.model_type, MeanPooledConfig)
AutoModel.register(MeanPooledConfig, MeanPooledClassifier)
AutoModelForSequenceClassification.register(MeanPooledConfig, MeanPooledClassifier)
