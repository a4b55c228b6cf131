"""Report pages in a headless Chromium: no script fails, figures are right, marks answer the mouse, the table sorts.

`make browser` installs what this needs, except for the browser.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_folders import (
    METRICS,
    SCRIPT,
    write_comparison,
    write_diverged_search,
    write_label_run,
    write_number_run,
    write_run,
)

from sptune.compare.comparison_report import write_comparison_report
from sptune.report.charts import COLORS
from sptune.runs.run_report import write_run_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'browser')")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed, such as Debian's package chromium", allow_module_level=True)
# Drawing takes long on a busy machine.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield chromium
        chromium.close()


def open_page(browser: Any, path: Path, **how: Any) -> tuple[Any, list[str]]:
    """A page with its charts drawn, and a list of what goes wrong in it."""
    page, wrong = browser.new_page(**how), []
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-drawn]")
    return page, wrong


def test_a_run(browser: Any, tmp_path: Path) -> None:
    page, wrong = open_page(browser, write_run_report(write_run(tmp_path)))
    shown = page.locator("[data-figure='test.accuracy']")
    assert float(shown.get_attribute("value")) == METRICS["test"]["accuracy"]
    assert shown.inner_text() == "0.8000"
    assert page.locator("td.text").first.inner_text() == f"{SCRIPT} 3"
    page.locator("#learning-curves svg").scroll_into_view_if_needed()
    page.locator("#learning-curves .mark-symbol.role-mark path").nth(3).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "step" in page.locator("#vg-tooltip-element").inner_text()
    assert page.evaluate("window.attacked") is None
    assert wrong == []


def test_a_run_with_labels_and_one_with_numbers(browser: Any, tmp_path: Path) -> None:
    page, wrong = open_page(browser, write_run_report(write_label_run(tmp_path / "labels")))
    rows = page.locator("section[aria-labelledby='labels'] tbody th")
    assert rows.all_inner_texts() == ["fun", "sad</script>"]
    page.locator("section[aria-labelledby='labels'] th button").first.click()
    page.locator("section[aria-labelledby='labels'] th button").first.click()
    assert rows.all_inner_texts() == ["sad</script>", "fun"]
    numbers, more = open_page(browser, write_run_report(write_number_run(tmp_path / "numbers")))
    numbers.locator("#predicted-numbers svg").scroll_into_view_if_needed()
    assert numbers.locator("#predicted-numbers .mark-symbol.role-mark path").count() == 12
    assert page.evaluate("window.attacked") is numbers.evaluate("window.attacked") is None
    assert wrong == more == []


def test_a_search_with_networks_that_diverged(browser: Any, tmp_path: Path) -> None:
    page, wrong = open_page(browser, write_run_report(write_diverged_search(tmp_path)))
    assert page.locator("#layer-scores .mark-rect.role-mark path").count() >= 1
    assert page.locator("#learning-curves svg").count() == 1
    assert wrong == []


def test_a_chart_that_cannot_be_drawn_does_not_stop_the_others(browser: Any, tmp_path: Path) -> None:
    report = write_run_report(write_diverged_search(tmp_path))
    report.write_text(report.read_text().replace('"score": -0.5', '"score": -Infinity'))
    page, wrong = open_page(browser, report)
    assert "could not be drawn" in page.locator("#layer-scores").inner_text()
    assert page.locator("#learning-curves svg").count() == 1
    assert len(wrong) == 1


def test_a_comparison(browser: Any, tmp_path: Path) -> None:
    page, wrong = open_page(browser, write_comparison_report(write_comparison(tmp_path)))

    def methods() -> list[str]:
        return [text.split("\n")[0] for text in page.locator("#methods-table tbody th").all_inner_texts()]

    before = methods()
    title = page.locator("#methods-table thead th", has_text="parameters")
    title.locator("button").click()
    assert methods() == ["lora", "spt", before[2]]
    assert title.get_attribute("aria-sort") == "descending"
    title.locator("button").click()
    assert methods() == [before[2], "spt", "lora"]
    dots = page.locator("#score-by-parameters .mark-symbol.role-mark path")
    fills = dots.evaluate_all("all => all.map(one => one.getAttribute('fill'))")
    assert sorted(fills) == sorted([COLORS[1], *[COLORS[0]] * (len(fills) - 1)])  # the reference stands out
    dots.nth(1).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "lora" in page.locator("#vg-tooltip-element").inner_text()
    assert page.evaluate("window.attacked") is None
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(scheme: str, browser: Any, tmp_path: Path) -> None:
    screen = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    page, wrong = open_page(browser, write_run_report(write_run(tmp_path)), **screen)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("html").get_attribute("data-drawn") == scheme
    assert wrong == []
