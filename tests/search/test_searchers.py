"""The table of searchers, and what all of them have in common."""

import math
import pkgutil

import pytest
import torch

from sptune import discretize
from sptune.errors import InputError, SptuneError
from sptune.search import SearchConfig, search_prompt_layers, searchers
from sptune.search.searchers import MIN_EXAMPLES, SEARCHERS, SELECTION_CRITERIA
from sptune.search.selection_criteria import CRITERIA

NAMES = [name for name, searcher in SEARCHERS.items() if not searcher.fixed]
PAIRS = [(name, criterion) for name in NAMES for criterion in SEARCHERS[name].criteria or (None,)]


def test_the_table_has_a_row_for_each_file_and_knows_all_criteria():
    assert sorted(NAMES) == sorted(module.name for module in pkgutil.iter_modules(searchers.__path__))
    assert tuple(CRITERIA) == SELECTION_CRITERIA
    fields = SearchConfig().to_dict()
    for searcher in SEARCHERS.values():
        assert set(searcher.criteria) <= set(CRITERIA)
        assert set(searcher.settings) <= set(fields)


@pytest.mark.parametrize(("searcher", "criterion"), PAIRS)
def test_every_searcher_finds_as_many_layers_as_are_wanted(search, searcher, criterion):
    result, network = search(searcher, selection=criterion)
    assert len(result.prompt_layers) == 2
    assert set(result.prompt_layers) <= {0, 1, 2, 3}
    assert len(result.scores) == 4
    assert result.search.criterion == criterion
    assert (result.gates is None) == (criterion is None or searcher in ("fair", "auto"))
    assert discretize(network, result.prompt_layers).base_model.generator_layers == result.prompt_layers


@pytest.mark.parametrize("searcher", NAMES)
def test_the_same_seed_finds_the_same(search, searcher):
    assert search(searcher, seed=4)[0].scores == search(searcher, seed=4)[0].scores


@pytest.mark.parametrize(("wanted", "layers"), [(1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (4, [0, 1, 2, 3])])
def test_spaced_layers_are_those_at_even_distances(search, wanted, layers):
    result, _ = search("spaced", num_prompt_layers=wanted)
    assert result.prompt_layers == layers
    assert (result.steps, result.history) == (0, [])


def test_by_default_layers_are_searched_for_where_there_are_examples_enough(
    build_supernet, build_args, make_examples, collate
):
    def search(size, **fields):
        told = []
        network, args, config = build_supernet(), build_args(max_steps=2), SearchConfig(**fields)
        examples = make_examples(size)
        result = search_prompt_layers(network, examples, args, config, data_collator=collate, tell=told.append)
        return result, told

    few, told = search(MIN_EXAMPLES - 1)
    assert (few.prompt_layers, few.steps) == ([1, 2], 0)
    (remark,) = few.remarks
    assert "1999 training examples are too few" in remark
    assert told == []  # the result holds the remark
    enough, told = search(MIN_EXAMPLES)
    assert enough.steps == 2
    assert told  # what the search will cost
    assert not any("too few" in remark for remark in enough.remarks)
    assert enough.scores == search(MIN_EXAMPLES, searcher="fair")[0].scores


@pytest.mark.parametrize(
    ("candidates", "who"),
    [
        (None, "All candidate layers (0 to 3) get a prompt"),
        ([0, 2, 3], "All candidate layers (0, 2, 3) get a prompt"),
        ([2], "The only candidate layer (2) gets a prompt"),
    ],
)
def test_by_default_nothing_is_searched_where_all_candidates_are_taken(
    build_supernet, build_args, make_examples, collate, candidates, who
):
    network, layers = build_supernet(candidate_layers=candidates), candidates or [0, 1, 2, 3]
    args, search = build_args(max_steps=2), SearchConfig(num_prompt_layers=len(layers))
    result = search_prompt_layers(network, make_examples(MIN_EXAMPLES), args, search, data_collator=collate)
    assert (result.prompt_layers, result.steps) == (layers, 0)
    assert result.remarks == [f"{who}, so there is nothing to search."]


def test_random_draws_follow_the_seed(search):
    found = {tuple(search("random", seed=seed)[0].prompt_layers) for seed in range(20)}
    assert len(found) > 3


@pytest.mark.parametrize("searcher", ["darts", "fair", "exhaustive"])
def test_a_search_that_diverges_says_so(search, searcher):
    with pytest.raises(SptuneError, match=r"diverged.*(Lower|lower) learning_rate"):
        search(searcher, args={"learning_rate": 1e30, "max_grad_norm": 0.0})


@pytest.mark.parametrize("searcher", ["fair", "darts", "halving"])
def test_a_weight_split_below_one_batch_is_refused(search, searcher):
    with pytest.raises(InputError, match="weight split has fewer examples than one batch of 8"):
        search(searcher, gate_fraction=0.75, args={"per_device_train_batch_size": 8, "dataloader_drop_last": True})


@pytest.mark.parametrize("searcher", NAMES)
@pytest.mark.parametrize(
    ("problem_type", "num_labels", "label"),
    [
        ("regression", 1, float),
        ("multi_label_classification", 3, lambda index: [float(index == one) for one in range(3)]),
    ],
)
def test_every_searcher_searches_with_numbers_and_several_labels(
    build_supernet, build_args, make_examples, collate, searcher, problem_type, num_labels, label
):
    def collate_floats(examples):
        labels = torch.tensor([label(example["labels"]) for example in examples], dtype=torch.float32)
        return {**collate(examples), "labels": labels}

    def scores(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    result = search_prompt_layers(
        build_supernet(backbone={"num_labels": num_labels}), make_examples(24), build_args(max_steps=6),
        SearchConfig(searcher=searcher, num_prompt_layers=2), class_scores=scores, problem_type=problem_type,
        data_collator=collate_floats,
    )  # fmt: skip
    assert len(result.prompt_layers) == 2
    assert all(math.isfinite(score) for score in result.scores)
