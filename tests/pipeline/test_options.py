"""RunOptions: types, choices, combinations, and the same names as the modules that the options go to."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sptune import SPTConfig
from sptune.errors import InputError
from sptune.prompt_config import GENERATORS, PLACEMENTS
from sptune.runs import run_options as options
from sptune.runs.run_options import RunOptions
from sptune.search import SearchConfig
from sptune.search.search_config import CONSISTENCIES
from sptune.search.searchers import SEARCHERS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "'modle' is not an option. Did you mean 'model'?"),
        ({"batch_size": "16"}, "batch_size='16' has the wrong type; it takes a whole number"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 0}, "batch_size=0 is not allowed"),
        ({"text_columns": "text"}, "text_columns='text' has the wrong type; it takes a list of texts"),
        ({"generator": "magic"}, "choose one of bottleneck, static"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"mixing_rate": 0.0}, "mixing_rate=0.0"),
        ({"resume": True, "overwrite": True}, "only one of them"),
        ({"epochs": 2, "max_steps": 3}, "give one"),
        ({"task": "sst2", "test_file": "mine.csv"}, "test_file='mine.csv' is of your own data"),
        ({"task": "sst2", "data": "copy", "labels": ["no", "yes"]}, "give a train_file too"),
        ({"data": "glue", "train_file": "a.csv"}, "leave out data"),
        ({"template": "{text} [MASK]"}, "template is given without label_words"),
        ({"task": "sst2", "template": "{text} [MASK]", "label_words": {"a": "b"}}, "brings its own template"),
        ({"num_prompt_layers": 2, "threshold": 0.5}, "num_prompt_layers and threshold"),
        ({"consistency": "mse"}, "has no effect with searcher='auto'; leave it out, or choose one of spt_darts."),
        (
            {"searcher": "middle", "gate_interval": 2},
            "choose one of darts, gumbel, l0, progressive, sampled, spt_darts.",
        ),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        RunOptions.from_mapping(values, "run.yaml")
    assert str(error.value).startswith("run.yaml: ")
    assert message in str(error.value)


def test_values_take_the_types_of_their_options() -> None:
    made = RunOptions(train_file=Path("a.csv"), text_columns=("a", "b"), epochs=3)  # type: ignore[arg-type]
    assert (made.train_file, made.text_columns, made.epochs) == ("a.csv", ["a", "b"], 3.0)


def test_how_to_go_about_a_run_is_not_what_the_run_is() -> None:
    lasting = RunOptions(output_dir="x", overwrite=True, seed=4).lasting()
    assert lasting["seed"] == 4
    assert not set(lasting) & {"output_dir", "resume", "overwrite", "keep_checkpoints"}
    assert RunOptions.from_mapping(lasting, "again").lasting() == lasting


def test_what_is_given_takes_the_place_of_what_it_excludes() -> None:
    written = {"max_steps": 157, "num_prompt_layers": 2, "seed": 3}
    assert options.merged(written, {"epochs": 3.0}) == {"epochs": 3.0, "num_prompt_layers": 2, "seed": 3}
    assert options.merged(written, {"epochs": None})["max_steps"] == 157
    assert options.merged(written, {"threshold": 0.5, "seed": 4}) == {"max_steps": 157, "threshold": 0.5, "seed": 4}


def test_choices_are_those_of_the_modules_they_go_to() -> None:
    choices = {one.name: one.metadata["choices"] for one in dataclasses.fields(RunOptions)}
    assert set(choices["generator"]) == {name for kinds in GENERATORS.values() for name in kinds}
    assert choices["placement"] == PLACEMENTS
    assert choices["searcher"] == tuple(SEARCHERS)
    assert choices["consistency"] == CONSISTENCIES


def test_defaults_are_those_of_the_modules_they_go_to() -> None:
    made, config = RunOptions(), SPTConfig()
    prepended = RunOptions(placement="prepend"), SPTConfig(placement="prepend")
    for name in ("placement", "num_virtual_tokens", "generator", "bottleneck_dim", "projection", "phm_dim",
                 "activation", "residual", "mixing_rate", "visibility"):  # fmt: skip
        assert getattr(made, name) == getattr(config, name), name
        assert getattr(prepended[0], name) == getattr(prepended[1], name), name
    assert made.searcher == SearchConfig().searcher


def test_the_papers_preset_is_what_it_says_unless_something_else_is_given() -> None:
    made, config = RunOptions(preset="paper"), SPTConfig.paper()
    for name in ("placement", "generator", "num_virtual_tokens", "residual", "mixing_rate", "visibility"):
        assert getattr(made, name) == getattr(config, name), name
    assert made.searcher == SearchConfig.paper().searcher == "spt_darts"
    other = RunOptions(preset="paper", num_virtual_tokens=4, searcher="darts")
    assert (other.placement, other.num_virtual_tokens, other.searcher) == ("prepend", 4, "darts")


def test_a_searcher_that_is_named_goes_before_the_preset() -> None:
    assert RunOptions(preset="paper", searcher="auto").searcher == "auto"


def test_another_placement_over_a_runs_file_brings_its_own_defaults() -> None:
    written = RunOptions(placement="prepend").lasting()
    assert RunOptions(**options.merged(written, {"placement": "add"})).generator == "bottleneck"
    written = RunOptions().lasting()
    made = RunOptions(**options.merged(written, {"preset": "paper"}))
    assert (made.placement, made.generator, made.searcher) == ("prepend", "appg", "spt_darts")


def test_a_file_from_before_there_were_placements_is_of_prompts_in_front() -> None:
    old = {"generator": "appg", "num_virtual_tokens": 10, "residual": True, "versions": {"sptune": "0.1.0"}}
    assert RunOptions.from_mapping(old, "config.yaml").placement == "prepend"


def test_what_belongs_to_the_other_placement_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"(?s)num_virtual_tokens=4.*placement='prepend'"):
        RunOptions(num_virtual_tokens=4)
