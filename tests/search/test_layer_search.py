import matplotlib
import pytest
from datasets import Dataset
from peft import get_peft_model

from sptune import SPTConfig, discretize
from sptune.errors import InputError
from sptune.search import SearchConfig, search_prompt_layers


@pytest.fixture
def search(build_args, examples, collate):
    def run(network, search=None, **options):
        return search_prompt_layers(
            network, examples, build_args(max_steps=6), search, data_collator=collate, **options
        )

    return run


@pytest.mark.parametrize("searcher", ["spt_darts", "darts"])
def test_the_chosen_layers_are_those_of_the_largest_final_gates(build_supernet, search, searcher):
    network = build_supernet()
    result = search(network, SearchConfig(searcher=searcher, num_prompt_layers=2))
    ranked = sorted(range(4), key=lambda layer: result.gates[layer], reverse=True)
    assert result.prompt_layers == sorted(ranked[:2])
    assert result.gates == network.base_model.gate_values().tolist()
    assert result.candidate_layers == [0, 1, 2, 3]
    assert result.steps == len(result.history) == 6


def test_the_result_makes_the_final_network(build_supernet, build_backbone, bert, search, tmp_path):
    network = build_supernet(candidate_layers=[1, 2, 3])
    result = search(network, SearchConfig(num_prompt_layers=1))
    assert set(result.prompt_layers) <= {1, 2, 3}
    result.save(tmp_path / "search.json")
    config = type(result).load(tmp_path / "search.json").config
    fresh = get_peft_model(build_backbone(bert, "classifier"), config)
    assert fresh.base_model.generator_layers == result.prompt_layers
    final = discretize(network, result.prompt_layers)
    assert {name: p.shape for name, p in final.named_parameters() if p.requires_grad} == {
        name: p.shape for name, p in fresh.named_parameters() if p.requires_grad
    }


def test_by_threshold_the_largest_gate_is_always_taken(build_supernet, search):
    result = search(build_supernet(), SearchConfig("spt_darts", threshold=0.999))
    assert result.prompt_layers == [max(range(4), key=lambda layer: result.gates[layer])]


def test_by_budget_counts_generator_parameters(build_supernet, search):
    network = build_supernet()
    size = sum(parameter.numel() for parameter in network.base_model.generator_parameters()[0])
    assert len(search(network, SearchConfig(parameter_budget=2 * size)).prompt_layers) == 2


@pytest.mark.parametrize(
    ("criteria", "complaint"),
    [({"num_prompt_layers": 5}, "only 4 candidate layers"), ({"parameter_budget": 3}, "parameter_budget=3 is less")],
)
def test_an_impossible_choice_fails_before_the_training(build_supernet, search, criteria, complaint):
    network = build_supernet()
    with pytest.raises(InputError, match=complaint):
        search(network, SearchConfig(**criteria))
    assert network.base_model.gate_values().tolist() == [0.5] * 4


@pytest.mark.parametrize(("searcher", "expected"), [("all", [0, 1, 2, 3]), ("middle", [2]), ("first", [0])])
def test_fixed_settings_need_no_training(build_supernet, search, searcher, expected):
    result = search(build_supernet(), SearchConfig(searcher=searcher))
    assert result.prompt_layers == result.config.prompt_layers == expected
    assert result.scores == [float(layer in expected) for layer in range(4)]
    assert (result.gates, result.history, result.steps) == (None, [], 0)


def test_a_network_without_gates_is_refused(build_backbone, build_config, bert, search):
    final = get_peft_model(build_backbone(bert, "classifier"), build_config(bert, "classifier", prompt_layers=[1]))
    for model in (final, build_backbone(bert, "classifier")):
        with pytest.raises(InputError, match="without gates; give a supernet"):
            search(model)


def test_a_default_network_is_searched(build_backbone, bert, search, tmp_path):
    network = get_peft_model(build_backbone(bert, "classifier"), SPTConfig(task_type="SEQ_CLS"))
    result = search(network, SearchConfig(searcher="fair"))
    assert 1 <= len(result.prompt_layers) <= 4
    backend = matplotlib.get_backend()
    result.plot(tmp_path / "search.svg")
    assert matplotlib.get_backend() == backend


def test_columns_that_the_model_does_not_take_are_left_out(build_supernet, build_args, examples, collate):
    class Strict:
        def __call__(self, rows):
            assert all("text" not in row for row in rows)
            return collate(rows)

    named = Dataset.from_list([{**example, "text": "a film"} for example in examples])
    search = SearchConfig(searcher="fair", num_prompt_layers=1)
    assert search_prompt_layers(build_supernet(), named, build_args(), search, data_collator=Strict()).steps == 4


def test_evaluation_during_the_search_is_left_out(build_supernet, build_args, examples, collate):
    """There is no data for it, and users may reuse their arguments of the training."""
    args = build_args(
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, eval_on_start=True,
        load_best_model_at_end=True,
    )  # fmt: skip
    search = SearchConfig(searcher="fair", num_prompt_layers=1)
    assert search_prompt_layers(build_supernet(), examples, args, search, data_collator=collate).steps == 4
    assert args.load_best_model_at_end


@pytest.mark.parametrize(("searcher", "layers"), [("all", [1, 2]), ("middle", [2])])
def test_fixed_settings_keep_to_the_candidates(build_network, build_args, bert, searcher, layers):
    network = build_network(bert, prompt_layers="search", candidate_layers=[1, 2])
    arguments = build_args()
    result = search_prompt_layers(network, None, arguments, SearchConfig(searcher=searcher))
    assert result.prompt_layers == layers


def test_a_fixed_setting_outside_the_candidates_is_refused(build_network, build_args, bert):
    network = build_network(bert, prompt_layers="search", candidate_layers=[1, 2])
    arguments = build_args()
    with pytest.raises(ValueError, match="not among the candidate_layers"):
        search_prompt_layers(network, None, arguments, SearchConfig(searcher="first"))
