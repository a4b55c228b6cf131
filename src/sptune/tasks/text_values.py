"""A check of the fields of tasks, which may come from a file."""

from __future__ import annotations

from collections.abc import Sequence

from sptune.errors import InputError, shortened


def check_texts(task: object, needed: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse fields of a task that are not text.

    Args:
        task: the task.
        needed: fields that must be text.
        optional: fields that may be None.

    Raises:
        InputError: which one.
    """
    for name in (*needed, *optional):
        value = getattr(task, name)
        if not isinstance(value, str) and (value is not None or name in needed):
            raise InputError(f"Task {shortened(getattr(task, 'name', None))}: {name} is {shortened(value)}, not text.")
