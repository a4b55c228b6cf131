"""GenerationTask: the columns with prompt and completion, or with chat messages, of a task whose answer is text."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sptune.errors import InputError
from sptune.tasks.text_values import check_texts

GENERATE = "generate"
ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
PROMPT_FIELD, COMPLETION_FIELD, MESSAGES_FIELD = "prompt", "completion", "messages"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks, one of `ROLES`.
        content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True)
class GenerationExample:
    """A prompt and the completion that a model learns to write.

    Attributes:
        prompt: a text, or the messages before the last turn of the assistant.
        completion: the text that follows, or the content of that turn; None if it is unknown.
        where: the location in the data, such as "train.jsonl:17".
    """

    prompt: str | tuple[Message, ...]
    completion: str | None
    where: str

    @property
    def stratum(self) -> Hashable:
        """The group within which splits are drawn: there is only one."""
        return None

    @property
    def text(self) -> Hashable:
        """The input, which should not occur in two splits."""
        return self.prompt


@dataclass(frozen=True)
class GenerationTask:
    """A task of writing text: from a prompt to its completion, or from messages to the assistant's next turn.

    Attributes:
        name: the name in messages and files.
        prompt_field: the column with the prompt; None for messages.
        completion_field: the column with the completion; None for messages.
        messages_field: the column with a list of messages; None for prompts and completions.
        kind: "generate".

    Raises:
        InputError: if the columns are not those of one of both forms.
    """

    name: str
    prompt_field: str | None = PROMPT_FIELD
    completion_field: str | None = COMPLETION_FIELD
    messages_field: str | None = None
    kind: str = GENERATE

    def __post_init__(self) -> None:
        check_texts(self, ("name", "kind"), ("prompt_field", "completion_field", "messages_field"))
        if self.kind != GENERATE:
            raise InputError(f"Task {self.name!r}: kind is {self.kind!r}; choose {GENERATE}.")
        pair = (self.prompt_field, self.completion_field)
        if self.messages_field is None and (None in pair or pair[0] == pair[1]):
            raise InputError(
                f"Task {self.name!r}: the prompt is in {pair[0]!r} and the completion in {pair[1]!r}; name two "
                "different columns, or the one that holds messages."
            )
        if self.messages_field is not None and pair != (None, None):
            raise InputError(
                f"Task {self.name!r}: messages hold both prompt and completion; name either their column "
                f"({self.messages_field!r}) or those of {pair[0]!r} and {pair[1]!r}."
            )

    @classmethod
    def of_messages(cls, name: str, messages_field: str = MESSAGES_FIELD) -> GenerationTask:
        """The task of writing the assistant's turn in conversations."""
        return cls(name, None, None, messages_field)

    @property
    def is_chat(self) -> bool:
        """Whether the input is a conversation, which the tokenizer's chat template turns into text."""
        return self.messages_field is not None

    @property
    def answer_field(self) -> str:
        """The column that holds the completions."""
        return self.messages_field or self.completion_field or ""

    def with_columns(self, columns: Mapping[str, str | None]) -> GenerationTask:
        """The task with other column names.

        Args:
            columns: names by field of this class; None keeps a name.

        Raises:
            InputError: if a column is not of this form of data.
        """
        given = {field: column for field, column in columns.items() if column is not None}
        for field, column in given.items():
            if getattr(self, field) is None:
                own = "messages" if self.is_chat else "prompts and completions"
                raise InputError(
                    f"{field.replace('field', 'column')}={column!r} does not fit task {self.name!r}, which was trained "
                    f"on {own}; leave it out, and give data of that form."
                )
        return replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """The content of task.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationTask:
        """The task from the content of task.json.

        Raises:
            InputError: if a key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise InputError(
                f"A task of kind {GENERATE!r} has the keys {', '.join(sorted(known))}; found "
                f"{', '.join(sorted(map(str, values)))}. Use a task.json that sptune wrote."
            )
        return cls(**values)
