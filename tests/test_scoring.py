"""What benchmarks/scoring.py says of choices, on small tables whose answers are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from scoring import SubsetTable, add_line, percentile, read_lines, regret, spearman


def rows(accuracies: dict[tuple[int, ...], list[float]], task: str = "t") -> list[dict[str, Any]]:
    """A row a run; the place in the list is the draw."""
    return [
        {"task": task, "layers": list(layers), "seed": draw, "accuracy": value / 100}
        for layers, of in accuracies.items()
        for draw, value in enumerate(of)
    ]


def test_regret_and_percentile_compare_with_sets_of_the_same_size() -> None:
    sets = {(0,): 80.0, (1,): 82.0, (2,): 79.0, (3,): 80.0}
    assert [regret(sets, [layer]) for layer in range(4)] == [2, 0, 3, 2]
    assert [percentile(sets, [layer]) for layer in range(4)] == pytest.approx([50, 100, 0, 50])
    assert percentile({(0, 1): 1.0}, [0, 1]) == 100


def test_a_choice_is_looked_up_without_the_draw_it_was_made_on() -> None:
    table = SubsetTable(rows({(0,): [90, 70, 70], (1,): [80, 80, 80]}))
    assert table.regret("t", [0], 0) == pytest.approx(10)
    assert table.regret("t", [0], 1) == 0
    assert table.percentile("t", [0], 0) == 0
    # A draw that the table has not is judged by all tables that lack one draw.
    assert table.regret("t", [0], 7) == pytest.approx((10 + 0 + 0) / 3)
    assert table.chance("t", 1, 0) == pytest.approx(5)


def test_a_draw_that_not_all_sets_have_does_not_count() -> None:
    """Else the set that has an easy draw more would pass for the better one."""
    table = SubsetTable(rows({(0,): [70, 70, 99], (1,): [71, 71], (0, 1): [80]}))
    assert table.draws("t", 1) == [0, 1]
    assert table.accuracies("t", 1) == pytest.approx({(0,): 70, (1,): 71})
    assert table.draws("t", 1, 2) == [0]


def test_all_layers_are_compared_on_the_same_draws_or_not_at_all() -> None:
    one = {(0,): [70.0, 80.0], (1,): [72.0, 82.0]}
    assert SubsetTable(rows({**one, (0, 1): [71.0, 85.0]})).above_all("t", [0], 0) == pytest.approx(-5)
    assert str(SubsetTable(rows({**one, (0, 1): [71.0]})).above_all("t", [0], 0)) == "nan"


def test_noise_leaves_out_what_a_draw_does_to_all_sets() -> None:
    easy_draw = {(0,): [70.0, 75.0], (1,): [71.0, 76.0]}
    assert SubsetTable(rows(easy_draw)).noise() == pytest.approx(0)
    swapped = {(0,): [70.0, 72.0], (1,): [72.0, 70.0]}
    assert SubsetTable(rows(swapped)).noise() == pytest.approx(2)  # residuals of 1 in four runs, one degree of freedom


def test_the_best_of_one_run_is_chosen_on_that_draw_alone() -> None:
    table = SubsetTable(rows({(0,): [90, 70, 70], (1,): [80, 80, 80]}))
    assert table.best_of_one_run("t", 1) == {0: (0,), 1: (1,), 2: (1,)}


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [3, 2, 1]) == 0


def test_a_line_that_was_cut_off_is_dropped_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read_lines(path) == []
    add_line(path, {"run": 1})
    with path.open("a") as file:
        file.write('{"run": 2, "accur')
    assert read_lines(path) == [{"run": 1}]
    add_line(path, {"run": 3})
    assert read_lines(path) == [{"run": 1}, {"run": 3}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == read_lines(path)
