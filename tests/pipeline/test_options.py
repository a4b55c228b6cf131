"""RunOptions: types, choices, combinations, and the same names as the modules that the options go to."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sptune import SPTConfig, options
from sptune.errors import InputError
from sptune.generators import GENERATORS
from sptune.options import RunOptions
from sptune.search import SearchConfig
from sptune.search.config import CONSISTENCIES, SEARCHERS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "'modle' is not an option. Did you mean 'model'?"),
        ({"batch_size": "16"}, "batch_size='16' has the wrong type; it takes a whole number"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": 0}, "batch_size=0 is not allowed"),
        ({"text_columns": "text"}, "text_columns='text' has the wrong type; it takes a list of texts"),
        ({"generator": "magic"}, "choose one of appg, static"),
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
        ({"consistency": "mse"}, "says nothing to searcher='auto'; leave it out, or choose one of spt_darts."),
        ({"searcher": "middle", "gate_interval": 2}, "choose one of darts, gumbel, l0, progressive, spt_darts."),
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
    assert set(choices["generator"]) == set(GENERATORS)
    assert choices["searcher"] == options.SEARCHERS == SEARCHERS
    assert choices["consistency"] == CONSISTENCIES


def test_defaults_are_those_of_the_modules_they_go_to() -> None:
    made, config = RunOptions(), SPTConfig()
    for name in ("num_virtual_tokens", "generator", "bottleneck_dim", "projection", "phm_dim", "activation",
                 "mixing_rate", "visibility"):  # fmt: skip
        assert getattr(made, name) == getattr(config, name), name
    assert made.searcher == SearchConfig().searcher
