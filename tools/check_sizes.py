"""Checks that files, classes and functions in src stay small enough to read at a glance.

    python tools/check_sizes.py

prints each one that is longer than its limit, docstring included, and ends with code 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_FILE, MAX_CLASS, MAX_FUNCTION = 400, 250, 45


def sizes(file: Path) -> Iterator[tuple[str, int, int]]:
    """What a file holds, with its number of lines and the limit."""
    source = file.read_text()
    yield "the file", len(source.splitlines()), MAX_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield node.name, lines, MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION


def main() -> int:
    """Print what is too long; returns the exit code."""
    found = 0
    for file in sorted((ROOT / "src").rglob("*.py")):
        for name, lines, limit in sizes(file):
            if lines > limit:
                found += 1
                print(f"{file.relative_to(ROOT)}: {name} has {lines} lines, more than {limit}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
