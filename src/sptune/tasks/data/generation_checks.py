"""Checks rows with prompts and completions, or with chat messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sptune.tasks.data.error_report import a_value, or_remove, shorten
from sptune.tasks.data.lookalike_names import is_blank, lookalike_key
from sptune.tasks.data.row_checks import RowChecker, check_text, checked_examples
from sptune.tasks.data.row_source import RowSource
from sptune.tasks.generation_task import ASSISTANT, ROLES, GenerationExample, GenerationTask, Message

# Of a message, by which it calls tools; and all that are known.
CALLS = ("tool_calls", "function_call")
MESSAGE_KEYS = {"role", "content", "weight", *CALLS}


def check_prompts(source: RowSource, task: GenerationTask, *, answered: bool) -> Iterator[GenerationExample]:
    """Turn the rows of a source into examples; errors go into `source.errors`.

    Args:
        source: the rows.
        task: names the columns.
        answered: whether each row must have a completion; otherwise only prompts are read.

    Yields:
        The examples of the rows without errors.
    """
    return checked_examples(prompt_rows(source, task, answered=answered))


def prompt_rows(source: RowSource, task: GenerationTask, *, answered: bool) -> RowChecker[GenerationExample]:
    """What checks rows with prompts or messages; see `check_prompts`."""
    if task.is_chat:
        return _MessageRows(source, task.messages_field or "", answered)
    return _PromptRows(source, task.prompt_field or "", task.completion_field if answered else None)


def _column_options(answered: bool) -> tuple[str, ...]:
    """The options that name columns; only those of answered rows name one of completions."""
    return ("prompt_column", *(["completion_column"] if answered else []), "messages_column")


class _PromptRows(RowChecker[GenerationExample]):
    """Rows with a prompt and, unless its column is None, a completion."""

    def __init__(self, source: RowSource, prompt: str, completion: str | None) -> None:
        self.column_options = _column_options(completion is not None)
        super().__init__(source, [prompt, *([] if completion is None else [completion])])

    def make_example(self, line: int, values: Mapping[str, Any]) -> GenerationExample | None:
        """Its prompt and completion, each as it stands."""
        errors = self.source.errors
        texts = [_check_prompt(values[column], column, line, self.source) for column in self.columns]
        if None in texts:
            return None
        prompt, *completion = texts
        return GenerationExample(prompt or "", completion[0] if completion else None, errors.locate(line))


class _MessageRows(RowChecker[GenerationExample]):
    """Rows with a list of messages, the last of which is the assistant's if they are answered."""

    def __init__(self, source: RowSource, column: str, answered: bool) -> None:
        self.column_options = _column_options(answered)
        super().__init__(source, [column])
        self.answered = answered
        self._has_noted = False

    def make_example(self, line: int, values: Mapping[str, Any]) -> GenerationExample | None:
        """The turns before the assistant's last one, and what it said."""
        column = self.columns[0]
        turns = self._turns(values[column], line)
        if turns is None:
            return None
        if not self.answered and turns[-1].role != ASSISTANT:
            return GenerationExample(turns, None, self.source.errors.locate(line))
        problem = None
        if all(turn.role != ASSISTANT for turn in turns):
            problem = ("no turn of the assistant", or_remove("Add what the assistant should write", line))
        elif turns[-1].role != ASSISTANT:
            problem = (
                f"the last turn is of {turns[-1].role!r}, and the model learns to write the assistant's",
                "End the conversation with a turn of the assistant.",
            )
        elif self.answered and values[column][-1].get("weight") == 0:
            problem = (
                "the last turn has the weight 0, so that it is not to be learned",
                or_remove("Take the weight out", line),
            )
        elif len(turns) == 1:
            problem = ("no message before the assistant's", or_remove("Begin with what the user writes", line))
        if problem is not None:
            self.source.errors.add(*problem, line=line, field=column)
            return None
        answer = turns[-1].content if self.answered else None
        return GenerationExample(turns[:-1], answer, self.source.errors.locate(line))

    def _turns(self, value: Any, line: int) -> tuple[Message, ...] | None:
        """The messages; None if they have an error."""
        if not isinstance(value, list | tuple):
            remedy = (
                'Write a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
            )
            if isinstance(value, str) and line:
                remedy += " Use JSON Lines or Parquet: other files hold no lists."
            found = "nothing" if value is None else a_value(value)
            self.source.errors.add(f"{found}, not a list of messages", remedy, line=line, field=self.columns[0])
            return None
        if not value:
            self.source.errors.add(
                "no messages", or_remove("Write at least one", line), line=line, field=self.columns[0]
            )
            return None
        turns = [self._turn(entry, f"{self.columns[0]}[{place}]", line) for place, entry in enumerate(value)]
        return None if None in turns else tuple(turn for turn in turns if turn is not None)

    def _turn(self, entry: Any, place: str, line: int) -> Message | None:
        """One message; None if it has an error."""
        errors = self.source.errors
        if not isinstance(entry, Mapping) or not {"role", "content"} <= set(entry):
            found = f"an object with {', '.join(map(repr, entry)) or 'nothing'}" if isinstance(entry, Mapping) else None
            errors.add(
                f"{found or a_value(entry)}, not a message",
                "A message is an object with the keys 'role' and 'content'.",
                line=line,
                field=place,
            )
            return None
        role = entry["role"]
        if role not in ROLES:
            close = next((one for one in ROLES if isinstance(role, str) and lookalike_key(role) == one), None)
            named = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT, "ai": ASSISTANT}
            meant = close or (named.get(role.lower()) if isinstance(role, str) else None)
            remedy = f"Write {meant!r}." if meant else f"Use one of {', '.join(map(repr, ROLES))}."
            errors.add(f"unknown role {shorten(role)}", remedy, line=line, field=f"{place}.role")
            return None
        called = next((key for key in CALLS if entry.get(key)), None)
        if called is not None:
            remedy = or_remove("Write the call as text, in the content", line)
            errors.add("a call of a tool, which would not be learned", remedy, line=line, field=f"{place}.{called}")
            return None
        if isinstance(entry["content"], list | tuple) and any(isinstance(one, Mapping) for one in entry["content"]):
            remedy = "Write the text itself; models of text alone are trained."
            errors.add("a list of parts, not text", remedy, line=line, field=f"{place}.content", value=entry["content"])
            return None
        self._note_ignored(entry, place, line)
        content = _check_prompt(entry["content"], f"{place}.content", line, self.source)
        return None if content is None else Message(role, content)

    def _note_ignored(self, entry: Mapping[str, Any], place: str, line: int) -> None:
        """Note the first key of a message that says something and is not read."""
        ignored = [key for key, value in entry.items() if key not in MESSAGE_KEYS and value not in (None, "", [], {})]
        if ignored and not self._has_noted:
            self._has_noted = True
            self.source.notes.append(
                f"{self.source.errors.locate(line)}, field {place!r}: {', '.join(map(repr, ignored))} is ignored; of a "
                "message the role and the content are read."
            )


def _check_prompt(value: Any, field: str, line: int, source: RowSource) -> str | None:
    """A text; None, and an error in the report, if it is blank or not text."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        source.errors.add(
            "a list of messages, not text",
            "Write prompt and completion of a conversation as one list in a column 'messages'.",
            line=line,
            field=field,
        )
        return None
    if isinstance(value, str) and value and is_blank(value):
        source.errors.add("nothing but blanks", or_remove("Write the text", line), line=line, field=field)
        return None
    return check_text(value, field, line, source.errors)
