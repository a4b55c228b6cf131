"""Prints the lowest version of each package that pyproject.toml allows, as constraints for pip.

    python tools/lowest_versions.py [EXTRA ...] > constraints.txt

PyTorch is left out, since its older versions are to be had with several gigabytes of CUDA only.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
# A name, extras in brackets, and a lowest or a fixed version; what follows is an upper bound or a marker.
REQUIREMENT = re.compile(r'"([A-Za-z0-9._-]+)(?:\[[^"]*\])?(?:>=|==)([0-9.]+)[^"]*"')
NOT_CONSTRAINED = ("torch", "setuptools")


def lowest_versions(text: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """The lowest versions by package.

    Args:
        text: of a pyproject.toml that lists dependencies as this project's does.
        extras: whose packages are among them.

    Raises:
        ValueError: there is no such extra, or a package without a lowest version.
    """
    lists = [_between(text, "\ndependencies = [", "\n]")]
    for extra in extras:
        lists.append(_between(text, f"\n{extra} = [", "]\n"))
    versions = {}
    for requirement in re.findall(r'"[^"]+"', "".join(lists)):
        found = REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise ValueError(f"pyproject.toml: {requirement} names no lowest version; write it as name>=version.")
        versions[found[1]] = found[2]
    return {name: version for name, version in versions.items() if name not in NOT_CONSTRAINED}


def _between(text: str, start: str, end: str) -> str:
    if start not in text:
        raise ValueError(f"pyproject.toml has no {start.strip()!r}; name an extra of it.")
    return text.split(start, 1)[1].split(end, 1)[0]


if __name__ == "__main__":
    for name, version in lowest_versions(PYPROJECT.read_text(encoding="utf-8"), tuple(sys.argv[1:])).items():
        print(f"{name}=={version}")
