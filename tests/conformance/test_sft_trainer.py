"""TRL's SFTTrainer trains added prompts on instruction data as `SPTTrainer` does, packed or not."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from conformance.families import BY_NAME
from sptune import SPTConfig
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_task import GenerationExample, GenerationTask, Message

QUESTIONS = ["who wrote the play ?", "where is it ?", "what is the plot about and who is it ?", "why ?"]
ANSWERS = [" nobody knows", " a place", " a mess", " so it begins again"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


@pytest.fixture
def tokenizer():
    words = ["<pad>", "</s>", "user", "assistant", ":", *dict.fromkeys(" ".join(QUESTIONS + ANSWERS).split())]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def make_trainer(tokenizer, randomize, tmp_path):
    """``make_trainer(rows, **options)``: an SFTTrainer of a tiny Llama with random prompts."""

    def make(rows, prompts=None, **options):
        config = {"prompt_layers": [1, 3], "bottleneck_dim": 4, **(prompts or {})}
        network = get_peft_model(BY_NAME["llama"].build(), SPTConfig(task_type="CAUSAL_LM", **config))
        randomize(network)
        usual = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "max_length": 64}
        usual |= {"gradient_checkpointing": False, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
        return SFTTrainer(
            network,
            SFTConfig(str(tmp_path), **{**usual, **options}),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    return make


def pairs():
    return [{"prompt": one, "completion": two} for one, two in zip(QUESTIONS, ANSWERS, strict=True)]


def loss_of(trainer):
    """The loss of one batch with all the data, in evaluation mode."""
    (batch,) = trainer.get_train_dataloader()
    trainer.model.eval()
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "seq_lengths"}
        return trainer.model(**inputs, use_cache=False).loss, batch  # without a cache, as SFTTrainer trains


@pytest.mark.parametrize("placement", ["add", "prepend"])
def test_the_loss_is_that_of_completions_as_in_a_run(make_trainer, tokenizer, placement):
    prompts = {"placement": placement, **({} if placement == "add" else {"num_virtual_tokens": 2})}
    trainer = make_trainer(pairs(), prompts, completion_only_loss=True)
    loss, batch = loss_of(trainer)
    encoder = GenerationEncoder(GenerationTask("t"), tokenizer, max_length=64)
    examples = [GenerationExample(row["prompt"], row["completion"], "1") for row in pairs()]
    own = encoder.collator(list(encoder.encode(examples)))
    assert (batch["labels"] != -100).sum() == (own["labels"] != -100).sum()
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(**own).loss, loss, atol=1e-5, rtol=1e-5)


def test_conversations_are_tokenized_as_in_a_run(make_trainer, tokenizer):
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
        }
        for row in pairs()
    ]
    loss, _ = loss_of(make_trainer(rows))
    encoder = GenerationEncoder(GenerationTask.of_messages("t"), tokenizer, max_length=64)
    examples = [GenerationExample((Message("user", row["prompt"]),), row["completion"].strip(), "1") for row in pairs()]
    own = encoder.collator(list(encoder.encode(examples)))
    with torch.no_grad():
        trainer = make_trainer(rows)
        torch.testing.assert_close(trainer.model.eval()(**own).loss, loss, atol=1e-5, rtol=1e-5)


def test_packed_examples_have_the_loss_of_padded_ones(make_trainer):
    apart, _ = loss_of(make_trainer(pairs()))
    together, batch = loss_of(make_trainer(pairs(), packing=True, packing_strategy="bfd"))
    assert batch["input_ids"].shape[0] == 1  # all examples in one row
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_packed_training_learns_and_its_adapter_generates(make_trainer, tokenizer, tmp_path):
    trainer = make_trainer(pairs() * 6, packing=True, max_steps=12, logging_steps=1, learning_rate=3e-2)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    trainer.model.save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(BY_NAME["llama"].build(), str(tmp_path / "adapter")).eval()
    batch = tokenizer(QUESTIONS[1], return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    trained = trainer.model.eval().generate(**batch, **options)
    assert torch.equal(model.generate(**batch, **options), trained)
