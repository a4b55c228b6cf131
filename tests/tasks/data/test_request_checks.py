"""Single requests are checked as rows of files are."""

from typing import Any

import pytest

from sptune.errors import InputError
from sptune.tasks import Example, Task, check_request
from sptune.tasks.generation_task import GenerationExample, GenerationTask, Message

ONE = Task("films", "classifier", ("text",), "label", ("good", "bad"))
PAIR = Task("pairs", "classifier", ("one", "two"), "label", ("good", "bad"))
CHAT = GenerationTask.of_messages("chat")


def test_texts_prompts_and_messages_become_examples() -> None:
    assert isinstance(check_request("a film", ONE, "here"), Example)
    assert check_request({"two": "b", "one": "a"}, PAIR, "here").fields == {"one": "a", "two": "b"}
    assert check_request("Question: why?", GenerationTask("explain"), "here").prompt == "Question: why?"
    asked = check_request([{"role": "user", "content": "why?"}], CHAT, "here")
    assert isinstance(asked, GenerationExample)
    assert asked.prompt == (Message("user", "why?"),)


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("", ONE, "here, field 'text', value '': empty text"),
        (["a"], ONE, "a list, not text"),
        ("a", PAIR, "here: one text was given, but the adapter reads the columns 'one', 'two'"),
        ({"one": "a"}, PAIR, "the columns 'one' were given"),
        ("why?", CHAT, "here, field 'messages': a text, not a list of messages"),
        ([{"role": "human", "content": "why?"}], CHAT, "Write 'user'"),
        ([], CHAT, "no messages"),
    ],
)
def test_wrong_requests_name_place_and_remedy(text: Any, task: Any, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_request(text, task, "here")
    assert message in str(refusal.value)
