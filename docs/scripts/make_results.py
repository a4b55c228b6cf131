"""Writes the figures of the docs from the committed rows in benchmarks/results.

    python docs/scripts/make_results.py            # writes them into README.md and docs/
    python docs/scripts/make_results.py --check    # fails if one of them is not what the rows say

A figure stands between two comments, in a line or as a table of its own:

    <!-- figure: scores few_shot -->
    ...
    <!-- end -->

The first word names a function of `FIGURES`, the others are its arguments.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

import campaign_figures  # noqa: E402
import default_figures  # noqa: E402
import instruction_figures  # noqa: E402
import scale_figures  # noqa: E402
import search_figures  # noqa: E402
import serving_figures  # noqa: E402
import speed_figures  # noqa: E402
import study_figures  # noqa: E402

FIGURES: dict[str, Callable[..., str]] = {
    **study_figures.FIGURES,
    **search_figures.FIGURES,
    **default_figures.FIGURES,
    **campaign_figures.FIGURES,
    **instruction_figures.FIGURES,
    **serving_figures.FIGURES,
    **scale_figures.FIGURES,
    **speed_figures.FIGURES,
}
MARKED = re.compile(r"(<!-- figure: ([^>]*?) -->)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every figure written anew.

    Raises:
        ValueError: a figure cannot be made; the message names it.
    """

    def figure(found: re.Match[str]) -> str:
        opening, name, old, closing = found.groups()
        function, *arguments = name.split()
        try:
            content = FIGURES[function](*arguments)
        except (KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"figure {name!r} cannot be made: {error!r}") from error
        if "\n" in content or old.startswith("\n"):
            content = f"\n\n{content.strip()}\n\n"
        return opening + content + closing

    return MARKED.sub(figure, text)


def pages() -> list[Path]:
    """README and all pages of the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Write the figures, or check them."""
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"Not what the rows say: {', '.join(stale)}. Run: python docs/scripts/make_results.py")
    print("\n".join(stale) or "All figures are what the rows say.")


if __name__ == "__main__":
    main()
