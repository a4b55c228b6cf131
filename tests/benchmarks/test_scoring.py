"""Scores of chosen layers on small tables with known answers."""

import math
from typing import Any

import numpy as np
import pytest

from scoring import (
    SubsetTable,
    crossed_interval,
    gains,
    mean_of_cells,
    percentile,
    regret,
    spearman,
)


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
    assert table.chance("t", 1) == pytest.approx((5 + 0 + 0) / 3)
    assert table.by_draw("t", [0], 0) == pytest.approx({1: 70, 2: 70})
    assert table.by_draw("t", [0], 7) == pytest.approx({0: 90, 1: 70, 2: 70})
    assert table.by_draw_of_all("t", 1) == pytest.approx({0: 85, 1: 75, 2: 75})


def test_a_draw_that_not_all_sets_have_does_not_count() -> None:
    """Else the set that has an easy draw more would pass for the better one."""
    table = SubsetTable(rows({(0,): [70, 70, 99], (1,): [71, 71], (0, 1): [80]}))
    assert table.draws("t", 1) == [0, 1]
    assert table.accuracies("t", 1) == pytest.approx({(0,): 70, (1,): 71})
    assert table.draws("t", 1, 2) == [0]


def test_gains_are_of_draws_that_both_have() -> None:
    assert gains({0: 5.0, 1: 7.0}, {1: 4.0, 2: 9.0}) == {1: 3.0}
    assert math.isnan(mean_of_cells({"t": {0: gains({0: 5.0}, {})}}))


def test_an_interval_takes_choices_and_look_ups_for_samples() -> None:
    """A choice that is the same on all draws is known as well as the table, however often it is made."""
    looked_up = {0: 1.0, 1: 2.0, 2: 3.0}
    table_alone = crossed_interval({"t": dict.fromkeys(range(6), looked_up)}, over_tasks=False)
    assert table_alone == crossed_interval({"t": dict.fromkeys(range(600), looked_up)}, over_tasks=False)
    # Mean 2, standard error 1 / sqrt(3), two degrees of freedom.
    assert table_alone == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)
    choices_alone = {"t": {draw: dict.fromkeys(range(600), value) for draw, value in looked_up.items()}}
    assert crossed_interval(choices_alone, over_tasks=False) == pytest.approx(table_alone)
    assert all(map(math.isnan, crossed_interval({"t": {0: {0: 1.0}}}, over_tasks=False)))
    tasks = {name: {0: {0: value}} for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    assert crossed_interval(tasks, over_tasks=True) == pytest.approx(table_alone)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Gains with noise of the choice, the look-up and the cell, as the table has them: six choices, three draws."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        cells: dict[str, dict[int, dict[int, float]]] = {}
        for task in "abcd":
            choice, draw = generator.normal(size=6), generator.normal(size=3)
            cells[task] = {
                e: {d: choice[e] + draw[d] + generator.normal() for d in range(3) if d != e} for e in range(6)
            }
        low, high = crossed_interval(cells, over_tasks=False)
        held += low <= 0 <= high
    assert 0.92 <= held / 400 <= 0.995


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
