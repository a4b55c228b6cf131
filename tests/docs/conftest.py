"""A folder in which the examples of the docs run as they stand: tiny models of the hub's names, and data files."""

import csv
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = ["the", "film", "was", "a", "story", "with", "actors", "and", "scenes", "It", ".", "?", ",", "bad", "Yes", "No"]
GOOD = ["good", "great", "fine", "lovely", "superb"]
BAD = ["terrible", "dull", "awful", "tired", "empty"]
WORDS = [*SPECIAL, *PLAIN, *GOOD, *BAD]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)
ENCODERS = {"sentence-transformers/all-MiniLM-L6-v2": 6, "roberta-base": 12, "roberta-large": 12}
DECODERS = {"HuggingFaceTB/SmolLM2-135M-Instruct": 4}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data files and the repository's studies, as the examples name them."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    for name, layers in ENCODERS.items():
        _tokenizer(causal=False).save_pretrained(folder / name)
        BertForMaskedLM(BertConfig(**SHAPE, num_hidden_layers=layers)).save_pretrained(folder / name)
    for name, layers in DECODERS.items():
        config = LlamaConfig(**SHAPE, num_hidden_layers=layers, bos_token_id=None, eos_token_id=3)
        _tokenizer(causal=True).save_pretrained(folder / name)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    _write_data(folder)
    shutil.copytree(ROOT / "benchmarks" / "studies", folder / "benchmarks" / "studies")
    shutil.copytree(ROOT / "benchmarks" / "studies", folder / "runs" / "local")
    return folder


@pytest.fixture
def workplace(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder of its own, and the current one."""
    folder = tmp_path / "examples"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    return folder


def _tokenizer(*, causal: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if causal:
        names |= {"eos_token": "[SEP]", "chat_template": CHAT_TEMPLATE}
        inputs = ["input_ids", "attention_mask"]
    else:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


def _write_data(folder: Path) -> None:
    reviews = [(text, "5" if good else "1") for text, good in _sentences(600)]
    _write_csv(folder / "reviews.csv", ["review", "stars"], reviews)
    _write_csv(folder / "test.csv", ["review", "stars"], reviews[:60])
    _write_csv(folder / "new.csv", ["review"], [(text,) for text, _ in reviews[:5]])
    pairs = [(text, text[::-1], "yes" if good else "no") for text, good in _sentences(60)]
    _write_csv(folder / "pairs.csv", ["premise", "hypothesis", "gold"], pairs)
    _write_csv(folder / "entailment.csv", ["premise", "hypothesis", "label"], pairs)
    classes = ("negative", "neutral", "positive")
    three = [(text, classes[number % 3]) for number, (text, _) in enumerate(_sentences(60))]
    _write_csv(folder / "sentiment.csv", ["text", "label"], three)
    topics = [
        (text, ["acting|scenes", "", "acting", "scenes"][number % 4]) for number, (text, _) in enumerate(_sentences(80))
    ]
    _write_csv(folder / "topics.csv", ["text", "topics"], topics)
    wide = [(text, int("acting" in names), int("scenes" in names)) for text, names in topics]
    _write_csv(folder / "columns.csv", ["text", "acting", "scenes"], wide)
    ratings = [(text, number % 7 + 0.5 * good) for number, (text, good) in enumerate(_sentences(80))]
    _write_csv(folder / "ratings.csv", ["text", "rating"], ratings)
    _write_csv(folder / "new_texts.csv", ["text"], [(text,) for text, _ in ratings[:5]])
    mixed = [{"adapter": "stars", "review": reviews[0][0]}, {"adapter": "sentiment", "text": three[0][0]}]
    _write_lines(folder / "mixed.jsonl", mixed)
    turns = [
        ({"role": "user", "content": text}, {"role": "assistant", "content": stars}) for text, stars in reviews[:60]
    ]
    _write_lines(folder / "instructions.jsonl", [{"messages": [*pair]} for pair in turns])
    _write_lines(folder / "test.jsonl", [{"messages": [*pair]} for pair in turns[:10]])
    _write_lines(folder / "questions.jsonl", [{"messages": [user]} for user, _ in turns[:3]])
    own = [{"review": text, "stars": stars} for text, stars in reviews[:60]]
    _write_lines(folder / "reviews" / "train.jsonl", own)
    hub = [{"text": text, "label": stars} for text, stars in reviews[:60]]
    for split, rows in (("train", hub[:30]), ("validation", hub[30:45]), ("test", hub[45:])):
        _write_lines(folder / "cornell-movie-review-data" / "rotten_tomatoes" / f"{split}.jsonl", rows)


def _sentences(number: int) -> Iterable[tuple[str, bool]]:
    """Different texts, and whether their adjectives are good ones."""
    draw = random.Random(0)
    for count in range(number):
        good = count % 2 == 0
        yield f"the film was {' '.join(draw.choices(GOOD if good else BAD, k=2))} and scenes were number {count}", good


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
