"""Prompts with completions, and conversations: how they are found, split, and refused."""

import json

import datasets
import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits
from sptune.tasks.data.generation_data import load_prompt_splits, read_prompts
from sptune.tasks.generation_task import GenerationTask, Message
from tasks.data.data_files import write_jsonl, write_parquet

PAIRS = [{"prompt": f"question {index}?", "completion": f" answer {index % 3}"} for index in range(40)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"].strip()},
        ]
    }
    for row in PAIRS
]
USER, ASSISTANT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}


def test_texts_stay_as_they_stand_and_splits_share_none(tmp_path):
    task, splits = load_prompt_splits("mine", train_file=write_jsonl(tmp_path / "train.jsonl", PAIRS))
    assert (task.prompt_field, task.completion_field, task.messages_field) == ("prompt", "completion", None)
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [28, 4, 8]
    every = [one for split in (splits.train, splits.validation, splits.test) for one in split]
    assert sorted((one.prompt, one.completion) for one in every) == sorted(tuple(row.values()) for row in PAIRS)
    assert any("8 examples" in note and "at random" in note for note in splits.notes)
    assert not any("class" in note for note in splits.notes)


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_messages_are_found_by_their_column(tmp_path, write):
    path = write(tmp_path / ("train.jsonl" if write is write_jsonl else "train.parquet"), CHATS)
    task, splits = load_prompt_splits("mine", train_file=path)
    assert task.messages_field == "messages"
    first = min(splits.train, key=lambda one: int(one.prompt[0].content.split()[1][:-1]))
    assert first.prompt == (Message("user", "question 0?"),)
    assert first.completion == "answer 0"


def test_columns_may_have_other_names(tmp_path):
    rows = [{"messages": "a note", "q": row["prompt"], "a": row["completion"]} for row in PAIRS]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    task, _ = load_prompt_splits("mine", train_file=path, prompt_column="q", completion_column="a")
    assert (task.prompt_field, task.completion_field) == ("q", "a")
    turns = write_jsonl(tmp_path / "turns.jsonl", [{"turns": row["messages"], "prompt": 1} for row in CHATS])
    assert load_prompt_splits("mine", train_file=turns, messages_column="turns")[0].messages_field == "turns"


def test_few_examples_and_repeated_prompts(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", PAIRS)
    _, splits = load_prompt_splits("mine", train_file=path, few_shot=5, seed=1)
    assert len(splits.train) == 5
    with pytest.raises(InputError, match=r"few_shot=50 does not fit: there are 40 training examples\. Choose"):
        load_prompt_splits("mine", train_file=path, few_shot=50)
    test = write_jsonl(tmp_path / "test.jsonl", [PAIRS[3], {"prompt": "new", "completion": "x"}])
    _, splits = load_prompt_splits("mine", train_file=path, test_file=test)
    assert any("1 of 2 test texts also occur in the training data" in note for note in splits.notes)


def test_a_saved_dataset_without_completions_in_its_test_split(tmp_path):
    withheld = [{"prompt": row["prompt"], "completion": ""} for row in PAIRS]
    splits = {"train": PAIRS, "validation": PAIRS[:5], "test": withheld}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(
        tmp_path / "saved"
    )
    _, loaded = load_prompt_splits("mine", dataset=str(tmp_path / "saved"))
    assert len(loaded.test) == 5
    assert any("withheld" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "completion": "x"}, "field 'prompt', value '': empty text"),
        ({"prompt": "why?", "completion": "  "}, "field 'completion': nothing but blanks"),
        ({"prompt": "why?", "completion": None}, "field 'completion', value None: empty text"),
        ({"prompt": "why?", "completion": 7}, "field 'completion', value 7: a number, not text"),
        ({"prompt": "why?"}, "field 'completion': missing, although other lines have it"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "field 'prompt': a list of messages.*column 'messages'"),
    ],
)
def test_a_bad_pair_is_reported_with_line_field_and_remedy(tmp_path, row, message):
    path = write_jsonl(tmp_path / "train.jsonl", [PAIRS[0], row, *PAIRS[1:]])
    with pytest.raises(InputError, match=rf"train\.jsonl:2, {message}"):
        load_prompt_splits("mine", train_file=path)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("why?", "': a text, not a list of messages.*Use JSON Lines or Parquet"),
        (None, "': nothing, not a list of messages"),
        ([], "': no messages"),
        ([USER], r"': no turn of the assistant\. Add what the assistant should write"),
        ([USER, ASSISTANT, USER], "': the last turn is of 'user'.*End the conversation with a turn of the assistant"),
        ([ASSISTANT], "': no message before the assistant's"),
        ([USER, "so"], r"\[1\]': a text, not a message"),
        ([{"from": "human", "value": "why?"}, ASSISTANT], r"\[0\]': an object with 'from', 'value', not a message"),
        ([{"role": "human", "content": "why?"}, ASSISTANT], r"\[0\]\.role': unknown role 'human'\. Write 'user'"),
        ([{"role": "User", "content": "why?"}, ASSISTANT], r"\[0\]\.role': unknown role 'User'\. Write 'user'"),
        ([{"role": 3, "content": "why?"}, ASSISTANT], r"\[0\]\.role': unknown role 3\. Use one of 'system'"),
        ([USER, {"role": "assistant", "content": ""}], r"\[1\]\.content', value '': empty text"),
        ([USER, {"role": "assistant", "content": ["so"]}], r"\[1\]\.content', value \['so'\]: a list, not text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "why?"}]}, ASSISTANT],
            r"\[0\]\.content', value .*: a list of parts, not text\. Write the text itself",
        ),
        ([USER, {**ASSISTANT, "tool_calls": [{"id": 1}]}], r"\[1\]\.tool_calls': a call of a tool, which would not"),
        ([USER, {**ASSISTANT, "weight": 0}], "': the last turn has the weight 0, so that it is not to be learned"),
    ],
)
def test_a_bad_conversation_is_reported_with_line_place_and_remedy(tmp_path, messages, message):
    path = write_jsonl(tmp_path / "train.jsonl", [CHATS[0], {"messages": messages}, *CHATS[1:]])
    with pytest.raises(InputError, match=rf"train\.jsonl:2, field 'messages{message}") as caught:
        load_prompt_splits("mine", train_file=path)
    assert "1 of" not in str(caught.value)


def test_missing_columns_name_those_that_are_there(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": "b"}] * 4)
    with pytest.raises(InputError, match=r"no line has a field 'prompt'; found 'text', 'label'\..*prompt_column"):
        load_prompt_splits("mine", train_file=path)
    table = tmp_path / "train.csv"
    table.write_text("prompt,answer\nwhy?,so\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no column 'completion'; found 'prompt', 'answer'\..*completion_column"):
        load_prompt_splits("mine", train_file=table)
    with pytest.raises(InputError, match=r"no line has a field 'text'.*add task_kind='generate'"):
        load_splits(train_file=write_jsonl(tmp_path / "chats.jsonl", CHATS))


def test_prompts_alone_are_enough_to_write(tmp_path):
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "why?"}, PAIRS[0]])
    assert [(one.prompt, one.completion) for one in read_prompts(path, GenerationTask("mine"), answered=False)] == [
        ("why?", None),
        ("question 0?", None),
    ]
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"messages": [USER]}, {"messages": [USER, ASSISTANT]}])
    task = GenerationTask.of_messages("mine")
    assert [one.prompt for one in read_prompts(chats, task, answered=False)] == [(Message("user", "why?"),)] * 2
    with pytest.raises(InputError, match="no turn of the assistant"):
        read_prompts(chats, task)
    single = write_jsonl(tmp_path / "single.jsonl", [{"messages": [USER]}])
    assert len(read_prompts(single, task, answered=False)) == 1


def test_a_task_is_what_its_document_says():
    for task in (GenerationTask("mine", "q", "a"), GenerationTask.of_messages("mine", "turns")):
        assert GenerationTask.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    with pytest.raises(InputError, match=r"Use a task\.json that sptune wrote"):
        GenerationTask.from_dict({"name": "mine", "kind": "generate"})
    with pytest.raises(InputError, match="name two different columns"):
        GenerationTask("mine", "text", "text")


def test_what_is_not_read_of_messages_is_noted_once(tmp_path):
    chats = [
        {"messages": [{**user, "name": "Ann"}, assistant]} for user, assistant in (row["messages"] for row in CHATS)
    ]
    _, splits = load_prompt_splits("mine", train_file=write_jsonl(tmp_path / "train.jsonl", chats))
    noted = [note for note in splits.notes if "ignored" in note]
    assert len(noted) == 1
    assert "train.jsonl:1, field 'messages[0]': 'name' is ignored; of a message the role and the content" in noted[0]


def test_keys_of_messages_that_say_nothing_are_not_noted(tmp_path):
    empty = {"name": None, "tool_calls": [], "weight": 1}
    chats = [{"messages": [{**turn, **empty} for turn in row["messages"]]} for row in CHATS]
    _, splits = load_prompt_splits("mine", train_file=write_jsonl(tmp_path / "train.jsonl", chats))
    assert not any("ignored" in note for note in splits.notes)
