"""Checks that code and documentation use the words of tools/glossary.txt.

    python tools/check_glossary.py

prints each place with a word that the project does not use, and ends with code 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE_BREAK = r"(?:\s+(?:# )?)"


def read_glossary(file: Path) -> dict[re.Pattern[str], str]:
    """The right word for each pattern of a wrong one."""
    entries = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [re.split(r"\s*->\s*", entry) for entry in entries]
    return {re.compile(rf"\b{wrong.replace(' ', LINE_BREAK)}\b", re.IGNORECASE): right for wrong, right in pairs}


def tracked_files() -> Iterator[Path]:
    """The Python and Markdown files of the repository, except results, which contain the names of settings."""
    names = subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    yield from (ROOT / name for name in names.stdout.splitlines() if "results/" not in name)


def main() -> int:
    """Print the wrong words; returns the exit code."""
    glossary = read_glossary(ROOT / "tools" / "glossary.txt")
    found = 0
    for file in tracked_files():
        text = file.read_text()
        for pattern, right in glossary.items():
            for match in pattern.finditer(text):
                found += 1
                line = text.count("\n", 0, match.start()) + 1
                print(f"{file.relative_to(ROOT)}:{line}: {' '.join(match[0].split())!r} ==> {right}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
