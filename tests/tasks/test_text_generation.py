import pytest
import torch
from peft import get_peft_model
from transformers import GenerationConfig

from sptune import SPTConfig
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_metrics import loss_metrics
from sptune.tasks.generation_task import GenerationExample, GenerationTask
from sptune.tasks.text_generation import BATCH_SIZE, generate_texts, measure_losses

SENTENCES = ["what is the film about ?", "nobody knows", "it was a great film , and worse than the play ."]
EXAMPLES = [
    GenerationExample(SENTENCES[index % 3] + " x" * index, f" {index} a book", f"{index}") for index in range(20)
]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_in_batches_are_those_of_each_prompt_alone(tokenizers, tiny_model, family):
    assert len(EXAMPLES) > BATCH_SIZE
    model = tiny_model(family, "ForCausalLM")
    encoder = GenerationEncoder(GenerationTask("t"), tokenizers[family], max_length=100)
    steps = []
    texts = generate_texts(model, encoder, EXAMPLES, 5, lambda: steps.append(1))
    assert len(steps) == 2
    for place in (0, 7, 19):
        assert generate_texts(model, encoder, EXAMPLES[place : place + 1], 5) == [texts[place]]
    (prompt,) = encoder.encode_prompts(EXAMPLES[:1])
    written = []
    for _ in range(5):
        with torch.no_grad():
            token = int(model(torch.tensor([prompt + written])).logits[0, -1].argmax())
        if token in encoder.stop_token_ids:
            break
        written.append(token)
    assert texts[0] == encoder.decode(written)


def test_texts_end_where_the_model_has_no_more_positions(tokenizers, tiny_model):
    model = tiny_model("gpt2", "ForCausalLM")  # of 128 positions
    encoder = GenerationEncoder(GenerationTask("t"), tokenizers["gpt2"], max_length=128)
    prompt = "a" + " x" * 200
    while len(encoder.tokenizer(prompt).input_ids) > 126:
        prompt = prompt[:-2]
    (text,) = generate_texts(model, encoder, [GenerationExample(prompt, None, "1")], 50)
    assert len(encoder.tokenizer(text).input_ids) < 20


def test_the_loss_of_batches_is_that_of_each_example_alone(tokenizers, tiny_model):
    model = tiny_model("llama", "ForCausalLM")
    encoder = GenerationEncoder(GenerationTask("t"), tokenizers["llama"], max_length=100)
    losses = measure_losses(model, encoder, EXAMPLES, lambda: None)
    assert losses.shape == (20, 2)
    row = encoder.encode(EXAMPLES[4:5])[0]
    with torch.no_grad():
        alone = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
    assert loss_metrics(losses[4:5])["loss"] == pytest.approx(float(alone), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(5, 600))},
        {"min_new_tokens": 20},
        {"max_time": 1e-9},
        {"return_dict_in_generate": True, "output_scores": True},
        {"prompt_lookup_num_tokens": 3},
        {"stop_strings": ["a"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_settings_that_come_with_a_model_do_not_change_what_it_writes(tokenizers, tiny_model, settings, with_adapter):
    model = tiny_model("llama", "ForCausalLM")
    if with_adapter:
        model = get_peft_model(model, SPTConfig(task_type="CAUSAL_LM", prompt_layers=[1], bottleneck_dim=4)).eval()
    encoder = GenerationEncoder(GenerationTask("t"), tokenizers["llama"], max_length=100)
    expected = generate_texts(model, encoder, EXAMPLES[:3], 20)
    own = GenerationConfig(**settings)
    backbone = model.get_base_model() if with_adapter else model
    backbone.generation_config = own
    assert generate_texts(model, encoder, EXAMPLES[:3], 20) == expected
    assert model.generation_config is backbone.generation_config is own
