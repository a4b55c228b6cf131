"""`SPTConfig`: what it refuses, and the layers that its settings stand for."""

import pytest

from sptune import SPTConfig
from sptune.config import resolve_prompt_layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_layers", "some"),
        ("prompt_layers", []),
        ("prompt_layers", [-1]),
        ("prompt_layers", [2, 2]),
        ("prompt_layers", [1.5]),
        ("prompt_layers", 3),
        ("candidate_layers", []),
        ("candidate_layers", [-2, 1]),
        ("num_virtual_tokens", 0),
        ("num_virtual_tokens", 2.5),
        ("generator", "lstm"),
        ("bottleneck_dim", 0),
        ("residual", "false"),
        ("projection", "quaternion"),
        ("phm_dim", 0),
        ("activation", "sharp"),
        ("mixing_rate", 0),
        ("mixing_rate", 1.5),
        ("mixing_rate", "half"),
        ("visibility", "never"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field) as refusal:
        SPTConfig(**{"placement": "prepend", field: value})
    shown = value[0] if isinstance(value, list) and value else value
    assert "empty" in str(refusal.value) if value == [] else str(shown) in str(refusal.value)


def test_a_phm_dimension_must_divide_the_bottleneck():
    with pytest.raises(ValueError, match=r"phm_dim.*5.*bottleneck_dim.*8"):
        SPTConfig(projection="phm", phm_dim=5, bottleneck_dim=8)


def test_candidate_layers_are_for_the_search_only():
    with pytest.raises(ValueError, match=r"candidate_layers.*prompt_layers"):
        SPTConfig(prompt_layers=[1], candidate_layers=[1, 2])


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"prompt_layers": "search"}, list(range(2, 10))),
        ({"prompt_layers": "search", "placement": "prepend"}, list(range(2, 12))),
        ({"prompt_layers": "search", "candidate_layers": [7, 2]}, [2, 7]),
        ({"prompt_layers": "all"}, list(range(12))),
        ({"prompt_layers": "middle"}, [6]),
        ({"prompt_layers": "first"}, [0]),
        ({"prompt_layers": [9, 4]}, [4, 9]),
    ],
    ids=str,
)
def test_prompt_layers_of_a_backbone_of_twelve_layers(options, layers):
    assert resolve_prompt_layers(SPTConfig(**options), 12) == layers


@pytest.mark.parametrize(
    ("placement", "layers", "candidates"),
    [
        ("add", 4, [0, 1, 2, 3]),
        ("add", 6, [1, 2, 3, 4]),
        ("add", 12, [2, 3, 4, 5, 6, 7, 8, 9]),
        ("add", 30, [5, 7, 9, 11, 13, 15, 17, 19, 21, 23]),
        ("prepend", 4, [0, 1, 2, 3]),
        ("prepend", 6, [1, 2, 3, 4, 5]),
        ("prepend", 12, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("prepend", 13, [2, 4, 6, 8, 10, 12]),
        ("prepend", 30, [5, 8, 11, 14, 17, 20, 23, 26, 29]),
    ],
)
def test_a_search_chooses_from_at_most_ten_layers_without_the_outer_ones(placement, layers, candidates):
    assert resolve_prompt_layers(SPTConfig(placement=placement, prompt_layers="search"), layers) == candidates


@pytest.mark.parametrize("options", [{"prompt_layers": [3, 12]}, {"candidate_layers": [12]}], ids=str)
def test_a_layer_beyond_the_backbone_is_refused(options):
    with pytest.raises(ValueError, match=r"12.*12 layers"):
        resolve_prompt_layers(SPTConfig(**options), 12)
