import pytest

from sptune.errors import InputError
from sptune.search import SearchConfig, select_layers
from sptune.search.layer_selection import layers_to_find

GATES = [0.2, 0.9, 0.4, 0.7]
CANDIDATES = [1, 3, 5, 8]


@pytest.mark.parametrize(("number", "expected"), [(1, [3]), (2, [3, 8]), (4, [1, 3, 5, 8])])
def test_by_number_takes_the_largest_gates_and_answers_in_ascending_order(number, expected):
    assert select_layers(GATES, CANDIDATES, num_prompt_layers=number) == expected


@pytest.mark.parametrize(("threshold", "expected"), [(0.3, [3, 5, 8]), (0.7, [3]), (0.95, [3])])
def test_by_threshold_takes_all_above_it_and_at_least_the_largest(threshold, expected):
    assert select_layers(GATES, CANDIDATES, threshold=threshold) == expected


@pytest.mark.parametrize(("budget", "expected"), [(10, 1), (29, 2), (30, 3), (1000, 4)])
def test_a_budget_pays_for_whole_layers(budget, expected):
    assert (
        layers_to_find(SearchConfig(parameter_budget=budget), layer_parameters=10, candidates=4, placement="add")
        == expected
    )


def test_between_equal_gates_the_higher_layer_goes_first():
    assert select_layers([0.5, 0.5, 0.5], [0, 1, 2], num_prompt_layers=1) == [2]


@pytest.mark.parametrize("criteria", [{}, {"num_prompt_layers": 1, "threshold": 0.5}])
def test_exactly_one_criterion_is_asked_for(criteria):
    with pytest.raises(InputError, match="exactly one of"):
        select_layers(GATES, CANDIDATES, **criteria)


def test_more_layers_than_candidates_are_refused():
    with pytest.raises(InputError, match=r"num_prompt_layers=5.*only 4 candidate layers"):
        select_layers(GATES, CANDIDATES, num_prompt_layers=5)


def test_a_budget_below_one_generator_is_refused():
    with pytest.raises(InputError, match=r"parameter_budget=9 .* 10 parameters"):
        layers_to_find(SearchConfig(parameter_budget=9), layer_parameters=10, candidates=4, placement="add")
