"""Tiny backbones in folders, as `from_pretrained` reads them, and a dataset that a few steps can learn."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD = ["fine", "lovely", "superb", "moving", "clever"]
BAD = ["dull", "awful", "tired", "empty", "clumsy"]
PLAIN = ["the", "film", "was", "a", "story", "it", "actors", "and", "scenes", "this", "It", ".", "good", "bad"]
WORDS = [*SPECIAL, *PLAIN, *GOOD, *BAD]

SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}


def _save(folder: Path, model: PreTrainedModel, *, causal: bool) -> str:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if not causal:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | (
        {"eos_token": "[SEP]"} if causal else {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BERT with three layers and a masked-language-model head."""
    torch.manual_seed(1)
    return _save(tmp_path_factory.mktemp("bert"), BertForMaskedLM(BertConfig(**SHAPE)), causal=False)


@pytest.fixture(scope="session")
def deep_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with fourteen layers, more than a search chooses from."""
    torch.manual_seed(1)
    config = BertConfig(**{**SHAPE, "num_hidden_layers": 14})
    return _save(tmp_path_factory.mktemp("deep"), BertForMaskedLM(config), causal=False)


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Llama with three layers and a language-model head."""
    torch.manual_seed(1)
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, bos_token_id=None, eos_token_id=3)
    return _save(tmp_path_factory.mktemp("llama"), LlamaForCausalLM(config), causal=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Train, validation and test files, as options of a run: are a sentence's adjectives good or bad words?"""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(0)
    files = {}
    for name, size in (("train", 48), ("validation", 16), ("test", 24)):
        rows = []
        for index in range(size):
            label = ("good", "bad")[index % 2]
            words = draw.choices(PLAIN[:9], k=draw.randint(2, 5)) + draw.choices(GOOD if label == "good" else BAD, k=3)
            draw.shuffle(words)
            rows.append(json.dumps({"text": " ".join(words), "label": label}))
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        files[f"{name}_file"] = str(path)
    return files


@pytest.fixture
def options(data: dict[str, str], masked_lm: str) -> dict[str, Any]:
    """A quick classifier run on the BERT that searches although its examples are few; add `output_dir`."""
    return {
        **data,
        "model": masked_lm,
        "bottleneck_dim": 4,
        "searcher": "fair",
        "search_steps": 5,
        "max_steps": 10,
        "batch_size": 8,
    }


def write_labels_or_numbers(path: Path, kind: str, size: int, seed: int = 0) -> str:
    """Texts with good and bad words: which kinds occur, or how many more good ones there are, in tens and from 100."""
    draw = random.Random(seed)
    rows = []
    for _ in range(size):
        good, bad = draw.randint(0, 3), draw.randint(0, 3)
        words = draw.choices(PLAIN[:9], k=3) + draw.choices(GOOD, k=good) + draw.choices(BAD, k=bad)
        draw.shuffle(words)
        names = [name for name, count in (("good", good), ("bad", bad)) if count]
        label: Any = "|".join(names) if kind == "multi_label" else 100 + 10 * (good - bad)
        rows.append(f'"{" ".join(words)}",{label}\n')
    path.write_text("text,label\n" + "".join(rows), encoding="utf-8")
    return str(path)
