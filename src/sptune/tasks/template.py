"""Template: combines the text columns of an example and the answer position to one input.

`{column}` is a column of the data, `[MASK]` the position of the label word; `{{` and `}}` are literal braces.
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
        parts: ("literal", text), ("field", column) or ("answer", ""), in the order of the input.
    """

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse a template.

        Raises:
            InputError: if braces are unbalanced, a field has no plain name, there is no field or more than one [MASK].
        """
        parts: list[tuple[str, str]] = []
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise InputError(
                f"Template {text!r}: {error}. Write a column as {{column}} and a literal brace as {{{{ or }}}}."
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
            raise InputError(f"Template {text!r} has no text column; write one in braces, such as {{text}}.")
        answers = sum(kind == "answer" for kind, _ in parts)
        if answers > 1:
            raise InputError(f"Template {text!r} has {answers} {MASK}; write it once, at the position of the answer.")
        return template

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns in the template, each once, in the order of the input."""
        return tuple(dict.fromkeys(value for kind, value in self.parts if kind == "field"))

    @property
    def has_answer(self) -> bool:
        """Whether the template contains [MASK]."""
        return ("answer", "") in self.parts

    @property
    def answer_context(self) -> tuple[str, bool]:
        """The literal text right before the answer, and whether a space separates them.

        The answer to a template without [MASK] follows its end, after a space unless it ends with a line break. An
        answer at the start counts as preceded by a space, as in published label words.
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
        """The template up to the answer, for a causal language model.

        Raises:
            InputError: if a column follows the answer, because the model would not see it.
        """
        if not self.has_answer:
            return self
        index = self.parts.index(("answer", ""))
        if any(kind == "field" for kind, _ in self.parts[index:]):
            raise InputError(
                f"Template '{self}' has text after the answer, which a causal language model does not see; give a "
                "causal_template that ends at the answer, such as '{text} Question type:'."
            )
        return Template(self.parts[:index])

    def renamed(self, names: Mapping[str, str]) -> Template:
        """The template with other column names."""
        return Template(
            tuple((kind, names.get(value, value) if kind == "field" else value) for kind, value in self.parts)
        )

    def render(self, fields: Mapping[str, str], answer: str = "") -> tuple[str, list[tuple[int, int]]]:
        """Fill in the template.

        Args:
            fields: the text of each column.
            answer: the text at the position of the answer.

        Returns:
            The input without trailing spaces, which belong to the next word; and the (start, end) characters of each
            field, in the order of the input.
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
