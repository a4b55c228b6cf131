"""Templates: how the text columns of an example and the place of the answer stand in one input.

`{column}` is a column of the data, `[MASK]` the place of the label word, `{{` and `}}` are braces themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from sptune.errors import InputError

MASK = "[MASK]"


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        parts: in the order of the input, ("literal", text), ("field", column) or ("answer", "").
    """

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template.

        Raises:
            InputError: unbalanced braces, a field without a name, no field at all, or more than one [MASK].
        """
        parts: list[tuple[str, str]] = []
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise InputError(
                f"Template {text!r}: {error}. Write a column as {{column}} and a brace itself as {{{{ or }}}}."
            ) from None
        for literal, field, form, conversion in pieces:
            before, *after = literal.split(MASK)
            if before:
                parts.append(("literal", before))
            for following in after:
                parts.append(("answer", ""))
                if following:
                    parts.append(("literal", following))
            if field is None:
                continue
            if not field or form or conversion:
                raise InputError(
                    f"Template {text!r}: a field needs the plain name of a column, such as {{text}}; found "
                    f"{{{field}{'!' + conversion if conversion else ''}{':' + form if form else ''}}}."
                )
            parts.append(("field", field))
        template = cls(tuple(parts))
        if not template.fields:
            raise InputError(f"Template {text!r} holds no text column; write one in braces, such as {{text}}.")
        answers = sum(kind == "answer" for kind, _ in parts)
        if answers > 1:
            raise InputError(f"Template {text!r} holds {MASK} {answers} times; write it once, where the answer stands.")
        return template

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns used, each once, in the order of the input."""
        return tuple(dict.fromkeys(value for kind, value in self.parts if kind == "field"))

    @property
    def has_answer(self) -> bool:
        """Whether [MASK] stands in the template."""
        return ("answer", "") in self.parts

    @property
    def answer_context(self) -> tuple[str, bool]:
        """The template's own text right before the answer, and whether a space separates the two.

        A template without [MASK] is answered after its end, with a space unless it ends with a line break. An answer
        at the very beginning is treated as if a space stood before it, as published label words are.
        """
        index = self.parts.index(("answer", "")) if self.has_answer else len(self.parts)
        if index == 0:
            return "", True
        kind, literal = self.parts[index - 1]
        if kind != "literal":
            return "", not self.has_answer
        text = literal.rstrip(" ")
        return text, text != literal or (not self.has_answer and not text.endswith("\n"))

    def open_ended(self) -> Template:
        """The template cut off at the answer, for a model that reads from left to right.

        Raises:
            InputError: a column stands after the answer, which such a model would not have read.
        """
        if not self.has_answer:
            return self
        index = self.parts.index(("answer", ""))
        if any(kind == "field" for kind, _ in self.parts[index:]):
            raise InputError(
                f"Template '{self}' asks for the answer before the text is complete, and a causal language model reads "
                "from left to right; give causal_template, with the answer at its end, such as '{text} Question type:'."
            )
        return Template(self.parts[:index])

    def renamed(self, names: Mapping[str, str]) -> Template:
        """The same template on other column names."""
        return Template(
            tuple((kind, names.get(value, value) if kind == "field" else value) for kind, value in self.parts)
        )

    def render(self, fields: Mapping[str, str], answer: str = "") -> tuple[str, list[tuple[int, int]]]:
        """The input text, and where in it each field stands: (start, end) by characters, in the order of the input.

        Spaces at the end are left out: they belong to the word that follows.
        """
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        length = 0
        for kind, value in self.parts:
            piece = fields[value] if kind == "field" else answer if kind == "answer" else value
            if kind == "field":
                spans.append((length, length + len(piece)))
            pieces.append(piece)
            length += len(piece)
        return "".join(pieces).rstrip(" "), spans

    def __str__(self) -> str:
        shown = {
            "literal": lambda value: value.replace("{", "{{").replace("}", "}}"),
            "field": lambda value: "{" + value + "}",
            "answer": lambda value: MASK,
        }
        return "".join(shown[kind](value) for kind, value in self.parts)
