"""report.html of runs and comparisons, as a parser of HTML reads it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_folders import (
    METRICS,
    SCRIPT,
    write_comparison,
    write_diverged_search,
    write_generation_run,
    write_label_run,
    write_number_run,
    write_run,
)
from scipy import stats

from sptune.cli.commands import main
from sptune.compare.comparison_report import write_comparison_report
from sptune.errors import InputError
from sptune.report.intervals import f1_interval, r2_interval
from sptune.runs.run_report import write_run_report


class Page(HTMLParser):
    """The elements of a page, its texts outside of scripts, and the specifications of its charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.specs, self.scripts = "", [], 0
        self.within = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = dict(attrs).get("type") or "code" if tag == "script" else ""
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "application/json":
            self.specs.append(json.loads(data, parse_constant=pytest.fail))  # as a browser's, which takes no NaN
        elif not self.within:
            self.text += data

    def figures(self) -> dict[str, float]:
        """The values in the page by their places in metrics.json or summary.json."""
        marked = [one for _, one in self.elements if "data-figure" in one]
        values = {one["data-figure"]: one.get("value") or one.get("data-value") for one in marked}
        return {str(place): float(value) for place, value in values.items() if value}


def at(document: Any, place: str) -> Any:
    for name in place.split("."):
        document = document[int(name) if isinstance(document, list) else name]
    return document


def test_figures_of_a_run_are_those_of_its_metrics(tmp_path: Path) -> None:
    page = Page(write_run_report(write_run(tmp_path)))
    figures = page.figures()
    assert {"test.accuracy", "baseline.test.accuracy", "gain.test.accuracy", "parameters.total"} <= set(figures)
    assert {place: at(METRICS, place) for place in figures} == figures
    interval = stats.binomtest(16, 20).proportion_ci(method="wilson")
    assert f"{interval.low:.4f} to {interval.high:.4f}" in page.text


def test_a_run_without_a_linear_probe_has_a_page(tmp_path: Path) -> None:
    alone = {name: value for name, value in METRICS.items() if name not in ("baseline", "gain")}
    (write_run(tmp_path) / "metrics.json").write_text(json.dumps(alone))
    page = Page(write_run_report(tmp_path))
    assert page.figures()["test.accuracy"] == 0.8
    assert "linear probe" not in page.text


def test_f1_has_an_interval(tmp_path: Path) -> None:
    measured = {**METRICS, **{name: {**METRICS[name], "f1": 0.8} for name in ("validation", "test")}}
    (write_run(tmp_path) / "metrics.json").write_text(json.dumps(measured))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "task.json").write_text(json.dumps({"task": {"positive_label": "pos"}}))
    page = Page(write_run_report(tmp_path))
    assert "bootstrap for F1" in page.text
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    low, high = f1_interval([row["prediction"] == "pos" for row in rows], [row["label"] == "pos" for row in rows])
    assert low < 0.8 < high
    assert f"{low:.4f} to {high:.4f}" in page.text


def test_a_run_that_writes_shows_losses_and_the_texts_least_like_their_completions(tmp_path: Path) -> None:
    page = Page(write_run_report(write_generation_run(tmp_path)))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    figures = page.figures()
    assert {"test.loss", "baseline.test.loss", "test.rouge_l"} <= set(figures)
    assert "reduction" in page.text
    assert "gain\n" not in page.text
    assert {place: at(metrics, place) for place in figures} == figures
    interval = stats.binomtest(11, 12).proportion_ci(method="wilson")
    assert f"{interval.low:.4f} to {interval.high:.4f}" in page.text
    assert page.text.index("something else") < page.text.index("word 0")
    assert f"user: {SCRIPT}" in page.text


def test_a_run_with_labels_shows_each_and_the_surest_mistakes(tmp_path: Path) -> None:
    page = Page(write_run_report(write_label_run(tmp_path)))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    figures = page.figures()
    assert {"test.micro_f1", "test.hamming_loss", "baseline.test.micro_f1", "gain.test.micro_f1"} <= set(figures)
    assert {place: at(metrics, place) for place in figures} == figures
    interval = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert f"{interval.low:.4f} to {interval.high:.4f}" in page.text
    assert "2 of the 2 test examples with wrong labels" in page.text
    assert page.text.index(f"{SCRIPT} 2") < page.text.index(f"{SCRIPT} 1")
    assert f"{metrics['test']['labels']['fun']['precision']:.4f}" in page.text
    assert "Confusion matrix" not in page.text


def test_a_run_with_numbers_shows_them_and_the_largest_errors(tmp_path: Path) -> None:
    page = Page(write_run_report(write_number_run(tmp_path)))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    figures = page.figures()
    assert {"test.r2", "test.rmse", "test.spearman", "baseline.test.r2"} <= set(figures)
    assert {place: at(metrics, place) for place in figures} == figures
    (cloud,) = [spec for spec in page.specs if "predicted" in json.dumps(spec)]
    assert '{"predicted": 8.5, "true": 3.0}' in json.dumps(cloud)
    assert "reach a test R²" in page.text
    assert page.text.index(f"{SCRIPT} last") < page.text.index(f"{SCRIPT} 0")


def test_the_most_confident_mistake_stands_first(tmp_path: Path) -> None:
    text = Page(write_run_report(write_run(tmp_path))).text
    assert "4 of the 4 wrong predictions" in text
    places = [text.index(f"{SCRIPT} {number}") for number in (3, 2, 1, 0)]
    assert places == sorted(places)
    assert f"{SCRIPT} 4" not in text


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_texts_of_users_stay_texts_and_nothing_is_loaded(kind: str, tmp_path: Path) -> None:
    if kind == "run":
        page = Page(write_run_report(write_run(tmp_path)))
        assert page.scripts == 2 + len(page.specs) == 3
    else:
        page = Page(write_comparison_report(write_comparison(tmp_path)))
        assert page.scripts == 2 + len(page.specs) == 5
        assert "<script>window.attacked = 4</script>" in page.text
    assert "window.attacked" in page.text
    assert not [one for tag, one in page.elements if tag in ("img", "link", "iframe") or "src" in one or "href" in one]
    policy = next(one["content"] for tag, one in page.elements if "http-equiv" in one)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_a_page_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    page = Page(write_run_report(write_run(tmp_path)))
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    charts = [one for _, one in page.elements if one.get("class") == "chart"]
    assert charts
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert [spec["description"] for spec in page.specs] == [one["aria-label"] for one in charts]


def test_figures_of_a_comparison_are_those_of_its_summary(tmp_path: Path) -> None:
    page = Page(write_comparison_report(write_comparison(tmp_path)))
    summary = json.loads((tmp_path / "summary.json").read_text())
    figures = page.figures()
    assert len(figures) > 20
    assert {place: at(summary, place) for place in figures} == figures
    assert "-0.0800 to -0.0200" in page.text


def test_a_comparison_says_which_tasks_its_means_are_over(tmp_path: Path) -> None:
    told = "Means, deviations and costs are over the tasks that spt has done: a."
    file = write_comparison(tmp_path) / "summary.json"
    assert told not in Page(write_comparison_report(tmp_path)).text
    lines = json.loads(file.read_text())
    del lines[0]["scores"]["b"]
    file.write_text(json.dumps(lines))
    assert told in Page(write_comparison_report(tmp_path)).text


def test_resamples_of_equal_numbers_do_not_carry_the_interval_of_r2_away() -> None:
    """Of three examples, every ninth resample has one of them three times."""
    low, high = r2_interval([0.11, 0.29, 0.7], [0.1, 0.3, 0.7])
    assert 0 == low < high <= 1
    assert r2_interval([0.1, 0.3, 0.7], [0.1, 0.3, 0.7]) == (1, 1)
    assert r2_interval([0.1, 0.2, 0.1], [0.1, 0.1, 0.1]) == (0, 1)


def test_layers_whose_networks_diverged_have_no_score(tmp_path: Path) -> None:
    page = Page(write_run_report(write_diverged_search(tmp_path)))
    (scores,) = [spec for spec in page.specs if "Score of each candidate layer" in spec["description"]]
    assert [point["score"] for point in scores["data"]["values"]] == [-0.5, None, None]
    assert page.text.count("–not chosen") == 2


def test_an_older_run_says_what_it_lacks(tmp_path: Path) -> None:
    write_run(tmp_path)
    for name in ("predictions.jsonl", "training_history.json"):
        (tmp_path / name).unlink()
    text = Page(write_run_report(tmp_path)).text
    assert "predictions.jsonl is missing" in text
    assert "kept no losses" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[1]"),
        ("metrics.json", '{"test": {"accuracy": 1}}'),
        ("metrics.json", '{"test": 3}'),
        ("predictions.jsonl", '{"text": \n'),
        ("predictions.jsonl", "[]\n"),
        ("training_history.json", '{"loss": 1}'),
        ("training_history.json", "[1]"),
    ],
)
def test_a_damaged_run_is_named_and_no_page_is_left(name: str, content: str, tmp_path: Path) -> None:
    (write_run(tmp_path) / name).write_text(content)
    with pytest.raises(InputError, match=name):
        write_run_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["{}", "[]", "3", '[{"method": "spt"}]', "["])
def test_a_damaged_comparison_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError, match=r"summary\.json"):
        write_comparison_report(tmp_path)


def test_the_command_takes_either_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (write_run(tmp_path / "run"), write_comparison(tmp_path / "comparison")):
        with pytest.raises(SystemExit) as left:
            main(["report", str(folder)])
        assert left.value.code == 0
        assert capsys.readouterr().out.strip() == str(folder / "report.html")
        assert (folder / "report.html").is_file()


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = tmp_path / "begun here"
    begun.mkdir()
    (begun / "config.yaml").write_text("seed: 0\ncommand: search\n")
    first, some = tmp_path / "first-run", tmp_path / "some-runs"
    (first / "locks").mkdir(parents=True)
    (first / "study.yaml").write_text("against: spt\n")
    some.mkdir()
    (some / "runs.jsonl").write_text('{"run": "a"}\n')
    again = f"finish it with: sptune search --output '{begun}' --resume"
    for folder, said in (
        (tmp_path, "no results of a run"),
        (begun, again),
        (tmp_path / "none", "no such folder"),
        (first, f"not finished (summary.json is missing); go on with sptune compare --study {first}/study.yaml"),
        (some, "not finished (summary.json is missing); go on with the same command again"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["report", str(folder)])
        assert left.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())
