import peft
import pytest
import torch

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_TASKS, Example, TaskEncoder

SST2, TREC = BENCHMARK_TASKS["sst2"], BENCHMARK_TASKS["trec"]
TEXTS = ["a film", "a film that is better than the book , and worse than the play", "who wrote it ?"]


def make(tokenizers, family, task=SST2):
    encode = TaskEncoder(task, tokenizers[family], max_length=64, causal=family in ("gpt2", "llama"))
    rows = list(encode.encode([Example({"text": text}, task.labels[0], "here") for text in TEXTS]))
    return encode, rows, encode.collator(rows)


class OutputShapes:
    """Notes the shape of what a model's output layer gives."""

    def __init__(self, model):
        self.seen = []
        model.get_output_embeddings().register_forward_hook(lambda module, args, output: self.seen.append(output.shape))


class Opaque(torch.nn.Module):
    """A wrapper that hides what it wraps."""

    def __init__(self, model):
        super().__init__()
        self.hidden = model

    def forward(self, *args, **kwargs):
        return self.hidden(*args, **kwargs)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("task", [SST2, TREC], ids=lambda task: task.name)
def test_masked_scores_are_the_label_words_logits_at_the_mask(tokenizers, tiny_model, family, task):
    encode, _, batch = make(tokenizers, family, task)
    model = tiny_model(family, "ForMaskedLM")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = torch.stack(
        [
            logits[ids.tolist().index(tokenizers[family].mask_token_id)][list(encode.label_token_ids)]
            for logits, ids in zip(model(**inputs).logits, batch["input_ids"], strict=True)
        ]
    )
    shapes = OutputShapes(model)
    scores = encode.class_scores(model, batch)
    assert scores.shape == (3, len(task.labels))
    torch.testing.assert_close(scores, expected)
    assert [shape[1] for shape in shapes.seen] == [1], "the vocabulary was scored at more than the mask"
    assert model(**inputs).logits.shape[1] == batch["input_ids"].shape[1], "the model was left changed"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_causal_scores_follow_the_last_real_token_whatever_the_padding(tokenizers, tiny_model, family):
    encode, rows, batch = make(tokenizers, family)
    model = tiny_model(family, "ForCausalLM")
    alone = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        alone.append(logits[0, -1, list(encode.label_token_ids)])
    shapes = OutputShapes(model)
    torch.testing.assert_close(encode.class_scores(model, batch), torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert [shape[1] for shape in shapes.seen] == [1], "the vocabulary was scored at more than the last token"
    right = {name: torch.zeros_like(value) for name, value in batch.items() if name != "labels"}
    for index, row in enumerate(rows):
        right["input_ids"][index, : row["length"]] = torch.tensor(row["input_ids"])
        right["attention_mask"][index, : row["length"]] = 1
    torch.testing.assert_close(encode.class_scores(model, right), torch.stack(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapper", [None, "peft"])
def test_a_model_on_several_devices_gets_no_index_of_one_of_them(tokenizers, tiny_model, wrapper):
    """PyTorch refuses an index on another GPU than the states; Accelerate moves it to the first one."""
    encode, rows, _ = make(tokenizers, "llama")
    batch = encode.collator(rows[:1])
    model = tiny_model("llama", "ForCausalLM")
    plain = encode.class_scores(model, batch)
    model.hf_device_map = {"model": 0, "lm_head": 1}
    kept = []

    def note(module, args, inputs):
        kept.append(inputs["logits_to_keep"])

    model.register_forward_pre_hook(note, with_kwargs=True)
    split = wrap(model, wrapper) if wrapper else model
    torch.testing.assert_close(encode.class_scores(split, batch), plain)
    assert kept == [1]


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrap(model, wrapper):
    if wrapper == "peft":
        config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=True)
        return peft.get_peft_model(model, config)
    if wrapper == "peft task":
        kind = "CAUSAL_LM" if "Causal" in type(model).__name__ or "LMHead" in type(model).__name__ else None
        return peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type=kind))
    if wrapper == "data parallel":
        return torch.nn.parallel.DistributedDataParallel(model)
    if wrapper == "peft in data parallel":
        return torch.nn.parallel.DistributedDataParallel(wrap(model, "peft"))
    return Opaque(model)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrapper", ["peft", "peft task", "data parallel", "peft in data parallel", "opaque"])
@pytest.mark.parametrize(
    ("family", "head"), [("bert", "ForMaskedLM"), ("gpt2", "ForCausalLM"), ("llama", "ForCausalLM")]
)
def test_wrapped_models_give_the_same_scores(tokenizers, tiny_model, family, head, wrapper):
    encode, _, batch = make(tokenizers, family)
    model = tiny_model(family, head)
    plain = encode.class_scores(model, batch).detach()
    wrapped = wrap(model, wrapper).eval()
    shapes = OutputShapes(model)
    torch.testing.assert_close(encode.class_scores(wrapped, batch).detach(), plain, rtol=1e-4, atol=1e-5)
    if wrapper != "opaque":
        assert [shape[1] for shape in shapes.seen] == [1], "the wrapper hides where the answer stands"


@pytest.mark.parametrize(("family", "head"), [("bert", "ForMaskedLM"), ("gpt2", "ForCausalLM")])
def test_scores_have_gradients(tokenizers, tiny_model, family, head):
    encode, _, batch = make(tokenizers, family)
    model = tiny_model(family, head)
    torch.nn.functional.cross_entropy(encode.class_scores(model, batch), batch["labels"]).backward()
    assert all(parameter.grad is not None for parameter in model.base_model.parameters() if parameter.ndim > 1)


def test_scores_are_in_full_precision(tokenizers, tiny_model):
    encode, _, batch = make(tokenizers, "llama")
    assert encode.class_scores(tiny_model("llama", "ForCausalLM").to(torch.bfloat16), batch).dtype == torch.float32


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_classifier_gives_its_heads_logits_whatever_the_padding(tokenizers, tiny_model, family):
    encode, rows, batch = make(tokenizers, family, SST2.as_classifier())
    model = tiny_model(family, "ForSequenceClassification", num_labels=2)
    model.config.pad_token_id = encode.collator.pad_token_id
    alone = torch.cat([encode.class_scores(model, encode.collator([row])) for row in rows])
    torch.testing.assert_close(encode.class_scores(model, batch), alone, rtol=1e-4, atol=1e-5)


def test_a_head_that_does_not_fit_the_task_is_refused(tokenizers, tiny_model):
    encode, _, batch = make(tokenizers, "bert", SST2.as_classifier())
    with pytest.raises(InputError, match="num_labels=2"):
        encode.class_scores(tiny_model("bert", "ForSequenceClassification", num_labels=6), batch)
    encode, _, batch = make(tokenizers, "bert")
    with pytest.raises(InputError, match="AutoModelForMaskedLM"):
        encode.class_scores(tiny_model("bert", "ForSequenceClassification", num_labels=2), batch)


def test_token_types_are_kept_from_a_model_that_takes_none(tokenizers):
    import transformers

    encode, _, batch = make(tokenizers, "bert")
    config = transformers.DistilBertConfig(vocab_size=30522, dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    assert encode.class_scores(transformers.DistilBertForMaskedLM(config).eval(), batch).shape == (3, 2)
