import pytest
import torch

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
