"""RunOptions: types, choices, combinations; nesting and old names; one mapping over another."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sptune import SPTConfig
from sptune.errors import InputError
from sptune.prompt_config import GENERATORS, PLACEMENTS, PromptConfig
from sptune.runs.options.option_mappings import merged
from sptune.runs.options.run_options import RunOptions, all_options
from sptune.runs.output_folder import read_config
from sptune.search import SearchConfig
from sptune.search.search_config import CONSISTENCIES
from sptune.search.searchers import SEARCHERS, SELECTION_CRITERIA

LABEL_WORDS = {"template": "{text} [MASK]", "label_words": {"a": "b"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "'modle' is not an option. Did you mean 'model'?"),
        ({"batch_size": "16"}, "batch_size='16' has the wrong type; it takes a whole number"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": "fast"}, "learning_rate='fast' has the wrong type; it takes a number or nothing"),
        ({"learning_rate": "inf"}, "learning_rate=inf is not allowed"),
        ({"epochs": 10**400}, "has the wrong type; it takes a number or nothing"),
        ({"batch_size": 0}, "batch_size=0 is not allowed"),
        ({"text_columns": "text"}, "text_columns='text' has the wrong type; it takes a list of texts"),
        ({"generator": "magic"}, "choose one of bottleneck, static"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"epochs": float("inf")}, "epochs=inf is not allowed; give a finite number above 0"),
        ({"head_learning_rate": float("inf")}, "head_learning_rate=inf is not allowed"),
        ({"weight_decay": float("inf")}, "weight_decay=inf is not allowed"),
        ({"activation_cache_memory": float("inf")}, "activation_cache_memory=inf is not allowed"),
        ({"searcher": "darts", "gate_learning_rate": float("inf")}, "gate_learning_rate=inf is not allowed"),
        ({"seed": 2**32}, "seed=4294967296 is not allowed; choose a whole number from 0 to 4294967295"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"mixing_rate": 0.0, "placement": "prepend"}, "mixing_rate=0.0"),
        ({"resume": True, "overwrite": True}, "only one of them"),
        ({"epochs": 2, "max_steps": 3}, "give one"),
        ({"task": "sst2", "test_file": "mine.csv"}, "test_file='mine.csv' is of your own data"),
        ({"task": "sst2", "dataset": "copy", "labels": ["no", "yes"]}, "give a train_file too"),
        ({"dataset": "glue", "train_file": "a.csv"}, "leave out dataset"),
        ({"template": "{text} [MASK]"}, "template is given without label_words"),
        ({"task": "sst2", "template": "{text} [MASK]", "label_words": {"a": "b"}}, "has its own template"),
        ({"num_prompt_layers": 2, "threshold": 0.5}, "num_prompt_layers=2, threshold=0.5; give at most one"),
        ({"consistency": "mse"}, "has no effect with searcher='auto'; leave it out, or choose one of spt_darts."),
        (
            {"searcher": "middle", "gate_interval": 2},
            "choose one of darts, gumbel, l0, progressive, sampled, spt_darts.",
        ),
        ({"searcher": "middle", "search_steps": 9}, "search_steps=9 has no effect with searcher='middle'"),
        ({"searcher": "spaced", "search_steps": 9}, "which trains nothing; leave it out, or choose another searcher"),
        ({"dataset_config": "sst2", "train_file": "a.csv"}, "dataset_config='sst2' is of a Hugging Face dataset"),
        ({"task_kind": "classifier", **LABEL_WORDS}, "task_kind='classifier' predicts a class with a trained head"),
        (
            {"activation_cache": False, "activation_cache_dtype": "float16"},
            "activation_cache_dtype='float16' has no effect with activation_cache=False; leave one of them out",
        ),
        ({"activation_cache": False, "activation_cache_memory": 1.0}, "activation_cache_memory=1.0 has no effect"),
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


def test_numbers_may_be_written_as_yaml_reads_them() -> None:
    text = "{learning_rate: 5e-3, weight_decay: 1e-2, mixing_rate: 5e-1, placement: prepend, class_weights: {a: 2e0}}"
    made = RunOptions.from_mapping(yaml.safe_load(text), "run.yaml")
    assert (made.learning_rate, made.weight_decay, made.prompts.mixing_rate) == (0.005, 0.01, 0.5)
    assert made.class_weights == {"a": 2.0}
    made = RunOptions.from_mapping(yaml.safe_load("search: {searcher: darts, gate_learning_rate: 1e-2}"), "run.yaml")
    assert made.search.gate_learning_rate == 0.01


def test_the_users_folder_stands_for_its_sign_in_all_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files = ("model", "gguf_file", "train_file", "validation_file", "test_file", "output_dir")
    for given in ("~/one", Path("~/one")):
        values = dict.fromkeys(files, given)
        for made in (RunOptions(**values), RunOptions.from_mapping(merged(values, {}), "run.yaml")):
            assert {getattr(made, name) for name in files} == {str(tmp_path / "one")}
    assert RunOptions(dataset="~/one").dataset == str(tmp_path / "one")
    (tmp_path / "run.yaml").write_text("{dataset: ~/one}")
    assert read_config(Path("~/run.yaml")) == {"dataset": "~/one"}


def test_how_to_go_about_a_run_is_not_what_the_run_is() -> None:
    lasting = RunOptions(output_dir="x", overwrite=True, seed=4).lasting()
    assert lasting["seed"] == 4
    assert not set(lasting) & {"output_dir", "resume", "overwrite", "keep_checkpoints"}
    assert RunOptions.from_mapping(lasting, "again").lasting() == lasting


def test_what_is_given_takes_the_place_of_what_it_excludes() -> None:
    written = {"max_steps": 157, "num_prompt_layers": 2, "seed": 3}
    assert merged(written, {"epochs": 3.0}) == {"epochs": 3.0, "num_prompt_layers": 2, "seed": 3}
    assert merged(written, {"epochs": None})["max_steps"] == 157
    assert merged(written, {"threshold": 0.5, "seed": 4}) == {"max_steps": 157, "threshold": 0.5, "seed": 4}


def test_what_is_given_goes_without_what_has_no_effect_beside_it() -> None:
    written = as_a_run_writes(search_steps=9, activation_cache_dtype="float16", model="a/b", revision="main")
    made = merged(written, {"searcher": "spaced", "activation_cache": False, "model": "c/d"})
    assert RunOptions(**made).search_steps is None
    assert "activation_cache_dtype" not in made
    assert "revision" not in made
    assert merged(written, {"model": "a/b"})["revision"] == "main"
    resumed = RunOptions(**merged(written, {"activation_cache": False, "resume": True}))
    assert (resumed.activation_cache, resumed.activation_cache_dtype) == (False, "float16")
    words = as_a_run_writes(**LABEL_WORDS, task_kind="verbalizer")
    assert RunOptions(**merged(words, {"task_kind": "classifier"})).template is None


def test_options_without_an_effect_in_the_file_of_an_older_run_are_left_out() -> None:
    old = {"versions": {"sptune": "0.1"}, "placement": "add"}
    for values in (
        {"searcher": "spaced", "search_steps": 38},
        {"task_kind": "verbalizer", "head_learning_rate": 1e-3, **LABEL_WORDS},
        {"task_kind": "classifier", **LABEL_WORDS},
        {"train_file": "a.csv", "dataset_config": "sst2"},
    ):
        RunOptions.from_mapping({**old, **values}, "config.yaml")
    assert RunOptions.from_mapping({**old, "model": "/models/b", "revision": "main"}, "config.yaml").revision is None
    with pytest.raises(InputError, match="search_steps=5 has no effect"):
        RunOptions.from_mapping(merged({**old, "searcher": "spaced"}, {"search_steps": 5}), "options")


def test_options_of_prompts_and_search_are_those_of_their_configurations() -> None:
    options = all_options()
    assert options["placement"].choices == PLACEMENTS
    assert set(options["generator"].choices or ()) == {name for kinds in GENERATORS.values() for name in kinds}
    assert options["searcher"].choices == tuple(SEARCHERS)
    assert options["consistency"].choices == CONSISTENCIES
    assert options["selection"].choices == SELECTION_CRITERIA
    made = RunOptions(placement="prepend", bottleneck_dim=4, mixing_rate=1, searcher="darts", gate_interval=3, seed=5)
    assert made.prompts == PromptConfig(placement="prepend", bottleneck_dim=4)
    assert made.search == SearchConfig(searcher="darts", gate_interval=3, seed=5)
    assert RunOptions().prompts == PromptConfig()
    assert RunOptions().search == SearchConfig()


def test_options_are_given_flat_or_as_configurations_or_nested_in_a_file() -> None:
    flat = RunOptions(bottleneck_dim=4, num_prompt_layers=3, max_steps=9)
    assert (
        RunOptions(prompts=PromptConfig(bottleneck_dim=4), search=SearchConfig(num_prompt_layers=3), max_steps=9)
        == flat
    )
    nested = {"prompts": {"bottleneck_dim": 4}, "search": {"num_prompt_layers": 3}, "max_steps": 9}
    assert RunOptions.from_mapping(nested, "run.yaml") == flat
    assert RunOptions.from_mapping(merged(nested, {"bottleneck_dim": 2}), "run.yaml").prompts.bottleneck_dim == 2
    assert dataclasses.replace(flat, bottleneck_dim=2).search == flat.search


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": {"num_prompt_layers": 3}}, "prompts: 'num_prompt_layers' is not an option of it"),
        ({"search": {"threshold": 0.5}, "threshold": 0.4}, "'threshold' is given both in search and beside it"),
        ({"dataset": "glue", "data": "glue"}, "'data' is the old name of 'dataset'"),
    ],
)
def test_nesting_and_old_names_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        RunOptions.from_mapping(values, "run.yaml")
    assert str(error.value).startswith(f"run.yaml: {message}")


def test_old_names_hold_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="'prefix_cache' is now 'activation_cache'"):
        assert not RunOptions(prefix_cache=False).activation_cache
    with pytest.warns(FutureWarning, match="'head_baseline' is now 'linear_probe'"):
        assert not RunOptions(head_baseline=False).linear_probe
    with pytest.warns(FutureWarning, match="'data' is now 'dataset'"):
        assert RunOptions.from_mapping({"data": "glue"}, "run.yaml").dataset == "glue"


def test_the_file_of_an_old_run_is_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    old = {"data": "glue", "prefix_cache_dtype": "float16", "head_baseline": True, "placement": "add",
           "prompt_layers": None, "consistency": None, "gate_interval": None, "selection": "sets",
           "versions": {"sptune": "0.1"}}  # fmt: skip
    made = RunOptions.from_mapping(old, "config.yaml")
    assert (made.dataset, made.activation_cache_dtype, made.search.selection) == ("glue", "float16", "sets")
    assert not recwarn


def test_a_run_that_searched_can_be_trained_at_other_layers() -> None:
    written = RunOptions(candidate_layers=[1, 2, 3]).lasting()
    assert RunOptions(**merged(written, {"prompt_layers": [2]})).prompts.prompt_layers == [2]


def test_the_papers_preset_is_what_it_says_unless_something_else_is_given() -> None:
    made, config = RunOptions(preset="paper"), SPTConfig.paper()
    for name in ("placement", "generator", "num_virtual_tokens", "residual", "mixing_rate", "visibility"):
        assert getattr(made.prompts, name) == getattr(config, name), name
    assert made.search.searcher == SearchConfig.paper().searcher == "spt_darts"
    other = RunOptions(preset="paper", num_virtual_tokens=4, searcher="darts")
    assert (other.prompts.placement, other.prompts.num_virtual_tokens) == ("prepend", 4)
    assert other.search.searcher == "darts"


def test_a_searcher_that_is_named_goes_before_the_preset() -> None:
    assert RunOptions(preset="paper", searcher="auto").search.searcher == "auto"


def as_a_run_writes(**options: Any) -> dict[str, Any]:
    """What config.yaml holds of a run with these options."""
    made = RunOptions(**options)
    return {**made.lasting(), "given": sorted(made.given), "versions": {"sptune": "0.1"}}


def test_another_placement_over_a_runs_file_brings_its_own_defaults() -> None:
    written = as_a_run_writes(placement="prepend")
    assert RunOptions.from_mapping(merged(written, {"placement": "add"}), "again").prompts.generator == "bottleneck"
    made = RunOptions.from_mapping(merged(as_a_run_writes(), {"preset": "paper"}), "again")
    assert (made.prompts.placement, made.prompts.generator, made.search.searcher) == ("prepend", "appg", "spt_darts")
    made = RunOptions.from_mapping(merged(as_a_run_writes(preset="paper"), {"placement": "add"}), "again")
    assert (made.prompts.placement, made.prompts.generator, made.search.searcher) == ("add", "bottleneck", "spt_darts")


@pytest.mark.parametrize(
    ("given", "width"),
    [
        ({}, 64),
        ({"bottleneck_dim": 4}, 4),
        ({"prompts": PromptConfig(bottleneck_dim=4)}, 4),
        ({"placement": "prepend"}, 8),
        ({"preset": "paper"}, RunOptions(preset="paper").prompts.bottleneck_dim),
    ],
)
def test_a_task_that_generates_text_has_wider_prompts(given: dict[str, Any], width: int) -> None:
    made = RunOptions(task_kind="generate", **given)
    assert made.prompts.bottleneck_dim == width
    again = RunOptions.from_mapping({**made.lasting(), "versions": {"sptune": "0.1"}}, "config.yaml")
    assert again.prompts == made.prompts
    assert RunOptions(**given).prompts.bottleneck_dim == (width if given else 4)


@pytest.mark.parametrize(
    ("written", "given", "width"),
    [
        ({"task_kind": "generate"}, {"placement": "prepend"}, 8),
        ({"task_kind": "generate"}, {"preset": "paper"}, 8),
        ({"task_kind": "generate"}, {"task_kind": "classifier"}, 4),
        ({"task_kind": "generate"}, {"max_steps": 5}, 64),
        ({"task_kind": "generate", "bottleneck_dim": 16}, {"task_kind": "classifier"}, 16),
        ({"task_kind": "generate", "generator": "static"}, {"generator": "bottleneck"}, 64),
        ({"task_kind": "generate", "placement": "prepend"}, {"placement": "add"}, 64),
        ({"task_kind": "generate", "preset": "paper"}, {"placement": "add"}, 64),
        ({"task_kind": "classifier"}, {"task_kind": "generate"}, 64),
        ({"task_kind": "classifier"}, {"task_kind": "generate", "bottleneck_dim": 4}, 4),
    ],
)
def test_another_kind_of_prompts_over_a_runs_file_has_its_own_width(
    written: dict[str, Any], given: dict[str, Any], width: int
) -> None:
    made = RunOptions.from_mapping(merged(as_a_run_writes(**written), given), "again")
    assert made.prompts.bottleneck_dim == width


def as_the_demo_writes(**asked: Any) -> dict[str, Any]:
    """What config.yaml holds of a run that chose all but what was asked for."""
    chosen = {"model": "a/b", "train_file": "/data/a.csv", "text_columns": ["text"], "task_kind": "classifier",
              "head_pooling": "mean", "candidate_layers": [1, 2, 3, 4], "num_prompt_layers": 4, "selection": "sets",
              "learning_rate": 5e-3, "head_learning_rate": 1e-2, "max_steps": 157, "max_length": 512}  # fmt: skip
    return {**as_a_run_writes(**{**chosen, **asked}), "given": ["model", "train_file", *asked]}


@pytest.mark.parametrize(
    ("given", "chosen_anew"),
    [
        ({"searcher": "spaced"}, {"selection", "num_prompt_layers", "candidate_layers"}),
        ({"test_file": "c.csv"}, {"max_steps"}),
        ({"searcher": "middle"}, {"selection", "num_prompt_layers"}),
        ({"searcher": "darts"}, {"selection", "num_prompt_layers"}),
        ({"searcher": "darts", "threshold": 0.5}, {"selection", "num_prompt_layers"}),
        ({"placement": "prepend"}, {"candidate_layers", "num_prompt_layers", "learning_rate"}),
        ({"generator": "static"}, {"learning_rate"}),
        ({"model": "c/d"}, {"candidate_layers", "num_prompt_layers", "max_length", "head_learning_rate"}),
        ({"train_file": "b.csv"}, {"max_steps", "text_columns"}),
        ({"batch_size": 32}, {"max_steps"}),
        ({"epochs": 2.0}, {"max_steps"}),
        ({"model": "a/b", "seed": 3}, set()),
    ],
)
def test_defaults_of_a_run_that_depend_on_a_change_are_chosen_anew(
    given: dict[str, Any], chosen_anew: set[str]
) -> None:
    before, now = as_the_demo_writes(), merged(as_the_demo_writes(), given)
    assert chosen_anew.isdisjoint(now)
    kept = {name for name, value in now.items() if value == before.get(name)}
    assert {"seed", "weight_decay", "activation"} - set(given) <= kept
    made = RunOptions.from_mapping(now, "again")
    assert made.given == {"model", "train_file", *given}
    if given.get("searcher") == "darts":
        assert made.search.criterion == "gates"


def test_what_was_asked_for_is_kept_beside_a_change_of_what_its_default_depends_on() -> None:
    written = as_the_demo_writes(num_prompt_layers=2, learning_rate=1e-3, max_steps=40)
    now = merged(written, {"model": "c/d", "generator": "static", "batch_size": 4})
    assert (now["num_prompt_layers"], now["learning_rate"], now["max_steps"]) == (2, 1e-3, 40)
    assert "candidate_layers" not in now
    again = merged({**as_a_run_writes(**now), "given": now["given"]}, {"searcher": "darts"})
    assert again["num_prompt_layers"] == 2


def test_a_run_that_is_resumed_keeps_all_that_it_chose() -> None:
    written = as_the_demo_writes()
    now = merged(written, {"batch_size": 8, "resume": True, "output_dir": "x"}, resumes=True)
    assert (now["max_steps"], now["candidate_layers"]) == (157, [1, 2, 3, 4])
    made = RunOptions.from_mapping(merged(written, {"resume": True}, resumes=True), "x")
    assert made.given == {"model", "train_file"}


@pytest.mark.parametrize("record", [5, None, [["model"]], {"model": 1}, "model"])
def test_a_record_of_what_was_asked_for_that_cannot_be_read_does_no_harm(record: Any) -> None:
    written = {**as_the_demo_writes(), "given": record}
    assert RunOptions.from_mapping(written, "config.yaml").max_steps == 157
    assert RunOptions.from_mapping(merged(written, {"seed": 3}), "again").seed == 3


def test_a_configuration_beside_a_file_goes_before_it() -> None:
    written = {**as_a_run_writes(bottleneck_dim=4, searcher="darts"), "given": []}
    now = merged(written, {"prompts": PromptConfig(bottleneck_dim=16), "resume": True, "output_dir": "x"})
    made = RunOptions.from_mapping(now, "again")
    assert (made.prompts.bottleneck_dim, made.search.searcher) == (16, "darts")
    assert RunOptions(prompts=PromptConfig(bottleneck_dim=16)).given >= {"bottleneck_dim"}


def test_configurations_do_not_silently_lose_to_other_options() -> None:
    refused = {
        r"search\.seed=7: a search has the seed of its run; give seed=7": {"search": SearchConfig(seed=7)},
        "preset='paper' and prompts exclude": {"preset": "paper", "prompts": PromptConfig(bottleneck_dim=16)},
    }
    for message, values in refused.items():
        with pytest.raises(InputError, match=message):
            RunOptions.from_mapping(values, "options")
        with pytest.raises(InputError, match=message):
            merged(as_the_demo_writes(), values, resumes=True)
    assert RunOptions.from_mapping({"search": SearchConfig(seed=7), "seed": 7}, "options").search.seed == 7
    assert dataclasses.replace(RunOptions(seed=3), seed=5).search.seed == 5


def test_a_configuration_records_what_differs_in_it() -> None:
    written = as_a_run_writes(prompts=PromptConfig(bottleneck_dim=16))
    assert written["given"] == ["bottleneck_dim"]
    made = RunOptions.from_mapping(merged(written, {"placement": "prepend"}), "again")
    assert (made.prompts.placement, made.prompts.generator, made.prompts.bottleneck_dim) == ("prepend", "appg", 16)


def test_the_epochs_of_a_run_stay_where_its_data_do_not() -> None:
    written = {**as_the_demo_writes(max_steps=2500), "given": ["model", "train_file", "epochs"]}
    assert merged(written, {"batch_size": 32})["max_steps"] == 2500
    assert "max_steps" not in merged(written, {"epochs": 3.0})


def test_a_path_in_another_spelling_is_the_same_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = as_the_demo_writes(train_file=str(tmp_path / "a.csv"))
    assert merged(written, {"train_file": "a.csv"})["max_steps"] == 157
    assert "max_steps" not in merged(written, {"train_file": "b.csv"})


def test_a_change_can_be_resumed_with_the_same_options() -> None:
    for change in ({"batch_size": 32}, {"searcher": "darts"}, {"placement": "prepend"}):
        begun = RunOptions.from_mapping(merged(as_the_demo_writes(), change), "begun")
        own = {**begun.lasting(), "given": sorted(begun.given), "max_steps": 40, "versions": {"sptune": "0.1"}}
        again = merged(as_the_demo_writes(), {**change, "resume": True, "output_dir": "x"})
        resumed = RunOptions.from_mapping(merged(own, again, resumes=True), "resumed").lasting()
        assert {**resumed, "max_steps": None} == {**begun.lasting(), "max_steps": None}


def test_candidates_of_a_search_do_not_bind_a_fixed_setting() -> None:
    for searcher in ("first", "all"):
        made = RunOptions.from_mapping(merged(as_the_demo_writes(), {"searcher": searcher}), "again")
        assert made.prompts.candidate_layers is None


def test_other_columns_and_another_file_of_a_backbone_bring_their_own_defaults() -> None:
    written = as_a_run_writes(model="/ga", gguf_file="x.gguf", task_kind="generate", prompt_column="prompt",
                              completion_column="completion")  # fmt: skip
    written["given"] = ["gguf_file", "task_kind"]
    now = merged(written, {"messages_column": "chat", "gguf_file": "/gb/y.gguf"})
    assert {"prompt_column", "completion_column", "model"}.isdisjoint(now)
    assert "gguf_file" not in merged({**written, "given": ["model", "gguf_file"]}, {"model": "gpt2"})
    asked = {"template": "{sentence} It was [MASK] .", "label_words": {"a": "bad", "b": "good"}}
    assert {"head_pooling", "text_columns", "task_kind"}.isdisjoint(merged(as_the_demo_writes(), asked))


def test_the_file_of_an_older_run_takes_another_placement_and_preset() -> None:
    old = {**RunOptions().lasting(), "versions": {"sptune": "0.1"}}
    made = RunOptions.from_mapping(merged(old, {"placement": "prepend"}), "again")
    assert (made.prompts.generator, made.prompts.bottleneck_dim) == ("appg", 8)
    made = RunOptions.from_mapping(merged(old, {"preset": "paper"}), "again")
    assert (made.prompts.placement, made.search.searcher) == ("prepend", "spt_darts")


MINE = {"placement": "prepend", "num_virtual_tokens": 3, "generator": "mppg", "searcher": "darts", "selection": "sets"}


@pytest.mark.parametrize("given", [{"placement": "prepend"}, {"preset": "paper"}])
@pytest.mark.parametrize("by_a_run", [True, False])
def test_what_was_asked_for_stays_where_the_placement_does(given: dict[str, Any], by_a_run: bool) -> None:
    written = as_a_run_writes(**MINE) if by_a_run else MINE
    made = RunOptions.from_mapping(merged(written, given), "again")
    assert (made.prompts.num_virtual_tokens, made.prompts.generator) == (3, "mppg")
    assert (made.search.searcher, made.search.selection) == ("darts", "sets")
    assert made.prompts.residual is ("preset" not in given)


def test_a_placement_that_contradicts_the_users_own_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"generator='mppg' goes with placement='prepend'"):
        RunOptions.from_mapping(merged(MINE, {"placement": "add"}), "again")


def test_a_file_from_before_there_were_placements_is_of_prompts_in_front() -> None:
    old = {"generator": "appg", "num_virtual_tokens": 10, "residual": True, "versions": {"sptune": "0.1.0"}}
    assert RunOptions.from_mapping(old, "config.yaml").prompts.placement == "prepend"


def test_what_belongs_to_the_other_placement_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"(?s)num_virtual_tokens=4.*placement='prepend'"):
        RunOptions(num_virtual_tokens=4)
