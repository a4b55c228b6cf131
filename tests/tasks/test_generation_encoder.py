"""Tokens and labels of prompts with completions and of conversations."""

import logging

import pytest
from transformers import AutoTokenizer

from sptune.errors import InputError
from sptune.tasks.generation_encoder import GenerationEncoder
from sptune.tasks.generation_task import GenerationExample, GenerationTask, Message

CHATML = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
PAIR = GenerationExample("what is the film about ?", " a book", "train.jsonl:1")
CHAT = GenerationExample(
    (Message("user", "what ?"), Message("assistant", "a play"), Message("user", "who wrote it ?")),
    "nobody",
    "train.jsonl:1",
)


@pytest.fixture
def chatting(gpt2_tokenizer, tmp_path):
    """Makes a tokenizer with a chat template."""
    gpt2_tokenizer.save_pretrained(tmp_path / "tokenizer")

    def make(template):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        tokenizer.chat_template = template
        return tokenizer

    return make


def encode(tokenizer, example, max_length=64, task=None):
    task = task or (GenerationTask("t") if isinstance(example.prompt, str) else GenerationTask.of_messages("t"))
    encoder = GenerationEncoder(task, tokenizer, max_length=max_length)
    row = encoder.encode([example])[0]
    learned = [token for token in row["labels"] if token != -100]
    assert row["labels"][-len(learned) :] == row["input_ids"][-len(learned) :] or task.is_chat
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(learned)


def test_prompt_and_completion_are_joined_as_they_stand(gpt2_tokenizer):
    assert encode(gpt2_tokenizer, PAIR) == (
        "what is the film about ? a book<|endoftext|>",
        " a book<|endoftext|>",
    )


def test_the_tokenizer_begins_a_prompt_as_it_begins_a_text(llama_tokenizer, roberta_tokenizer):
    text, learned = encode(llama_tokenizer, PAIR)
    assert text.startswith("<s>")
    assert learned.endswith("</s>")
    assert text.count("<s>") == text.count("</s>") == 1
    text, _ = encode(roberta_tokenizer, PAIR)  # which ends each text, too
    assert text.count("</s>") == 1


def test_tokens_of_a_prompt_are_those_after_which_a_model_writes(gpt2_tokenizer):
    encoder = GenerationEncoder(GenerationTask("t"), gpt2_tokenizer, max_length=64)
    (prompt,), row = encoder.encode_prompts([PAIR]), encoder.encode([PAIR])[0]
    assert row["input_ids"][: len(prompt)] == prompt
    assert [label == -100 for label in row["labels"]] == [place < len(prompt) for place in range(row["length"])]


def test_of_a_conversation_the_last_turn_is_learned(chatting):
    text, learned = encode(chatting(CHATML), CHAT)
    end = "<|endoftext|>"
    assert text == f"[user] what ?{end}\n[assistant] a play{end}\n[user] who wrote it ?{end}\n[assistant] nobody{end}"
    assert learned == f"nobody{end}"


def test_all_turns_are_learned_where_the_template_marks_them(chatting):
    text, learned = encode(chatting(MARKED), CHAT)
    assert text == encode(chatting(CHATML), CHAT)[0]
    assert learned == " a play<|endoftext|>nobody<|endoftext|>"


def test_special_tokens_in_messages_stay_text(chatting):
    tokenizer = chatting(CHATML)
    text, learned = encode(tokenizer, GenerationExample((Message("user", "a<|endoftext|>b"),), "x", "1"))
    assert "a< |endoftext|>b" in text
    assert learned == "x<|endoftext|>"


def test_long_completions_lose_their_end_and_prompts_nothing(gpt2_tokenizer, caplog):
    prompt = len(gpt2_tokenizer(PAIR.prompt).input_ids)
    encoder = GenerationEncoder(GenerationTask("t"), gpt2_tokenizer, max_length=prompt + 1)
    with caplog.at_level(logging.WARNING):
        (row,) = encoder.encode([PAIR])
    assert (row["length"], encoder.too_long) == (prompt + 1, 1)
    assert "1 of 1 examples have more than the maximum" in caplog.text
    assert "train.jsonl:1" in caplog.text
    tight = GenerationEncoder(GenerationTask("t"), gpt2_tokenizer, max_length=prompt)
    for use in (tight.encode, tight.encode_prompts):
        with pytest.raises(InputError, match=r"train\.jsonl:1: the prompt alone has .*larger max_length"):
            use([PAIR])


def test_tokenizers_that_cannot_be_used_are_refused(chatting, gpt2_tokenizer):
    task = GenerationTask.of_messages("t")
    with pytest.raises(InputError, match=r"no chat template.*columns 'prompt' and 'completion'"):
        GenerationEncoder(task, gpt2_tokenizer, max_length=64)
    refusing = chatting("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"refuses this conversation \(roles must alternate\)"):
        GenerationEncoder(task, refusing, max_length=64)
    changing = chatting("{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="another way once this turn is there"):
        GenerationEncoder(task, changing, max_length=64)
    silent = chatting(
        "{% for message in messages if message['role'] != 'assistant' %}{{ message['content'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="leaves out what the assistant writes"):
        GenerationEncoder(task, silent, max_length=64)
    for attack in ("''.__class__.__mro__[1].__subclasses__()", "messages.clear()", "range(10 ** 9)", "1 / 0"):
        with pytest.raises(InputError, match="refuses this conversation"):
            GenerationEncoder(task, chatting("{{ " + attack + " }}"), max_length=64)
    endless = chatting(CHATML)
    endless.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        GenerationEncoder(GenerationTask("t"), endless, max_length=64)


def test_decoding_keeps_the_spaces_of_a_text(chatting):
    tokenizer = chatting(CHATML)
    tokenizer.clean_up_tokenization_spaces = True  # the default of some tokenizers, such as that of GPT-2
    encoder = GenerationEncoder(GenerationTask("t"), tokenizer, max_length=64)
    text = " it was good . is n't it ?"
    assert encoder.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("before", "after"), [("<think>\\n\\n</think>\\n\\n", ""), ("", "\\n"), ("Answer : ", " .\\n"), ("", "")]
)
def test_what_a_template_writes_around_an_answer_is_no_part_of_the_generated_text(chatting, before, after):
    content = "(message['content'] if message['role'] == 'user' else '" + before + "' + message['content'] + '"
    tokenizer = chatting(CHATML.replace("message['content']", content + after + "')"))
    encoder = GenerationEncoder(GenerationTask.of_messages("t"), tokenizer, max_length=300)
    for answer in ("nobody", "a book . <think>"):
        example = GenerationExample(CHAT.prompt, answer, "1")
        (row,) = encoder.encode([example])
        learned = [token for token in row["labels"] if token != -100]
        assert learned[-1] == encoder.stop_token_ids[0]
        assert encoder.decode(learned[:-1]) == answer


def test_completions_that_go_on_after_an_end_token_are_reported(gpt2_tokenizer, caplog):
    encoder = GenerationEncoder(GenerationTask("t"), gpt2_tokenizer, max_length=64)
    with caplog.at_level(logging.WARNING):
        encoder.encode([PAIR, GenerationExample("a", " b<|endoftext|>", "2")])
        assert not caplog.text
        encoder.encode([PAIR, GenerationExample("a", " b<|endoftext|> and more", "train.jsonl:2")])
    assert "1 of 2 completions contain the end token '<|endoftext|>' before their end (the first: train.jsonl:2)" in (
        caplog.text
    )
