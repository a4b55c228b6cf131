import pytest

from sptune.errors import InputError
from sptune.search import SearchConfig


def test_round_trip_through_a_dictionary():
    config = SearchConfig(searcher="darts", threshold=0.6, warmup_ratio=0.1, seed=7)
    assert SearchConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("searcher", "guess"),
        ("consistency", "cosine"),
        ("num_prompt_layers", 0),
        ("num_prompt_layers", 1.5),
        ("parameter_budget", -1),
        ("threshold", 1.0),
        ("consistency_weight", -1.0),
        ("mask_probability", 1.0),
        ("mixed_level_weight", -0.5),
        ("gate_learning_rate", 0.0),
        ("gate_interval", 0),
        ("warmup_ratio", 1.0),
        ("gate_fraction", 0.0),
        ("gate_fraction", "half"),
        ("seed", -1),
    ],
)
def test_a_bad_value_is_named_with_its_field(field, value):
    with pytest.raises(InputError, match=f"{field}={value!r} is not allowed"):
        SearchConfig(**{field: value})


def test_two_criteria_are_refused():
    with pytest.raises(InputError, match=r"num_prompt_layers=2, threshold=0.5; give at most one"):
        SearchConfig(num_prompt_layers=2, threshold=0.5)


def test_a_criterion_with_a_fixed_setting_is_refused():
    with pytest.raises(InputError, match=r"searcher='middle' fixes the layers"):
        SearchConfig(searcher="middle", num_prompt_layers=2)


def test_an_unknown_field_is_refused():
    with pytest.raises(InputError, match="no field 'lambda'"):
        SearchConfig.from_dict({"lambda": 1})
