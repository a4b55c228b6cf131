"""What a study is made of: methods, runs and their identity, and how it is summed up. Nothing is trained here."""

import json
import math
import os
from collections.abc import Callable
from datetime import date
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from matplotlib.text import Text
from scipy import stats

from sptune.cli.commands import main
from sptune.compare import METHODS, Study
from sptune.compare.pictures import plot_layers, plot_scores
from sptune.compare.run_log import RunLog
from sptune.compare.summary import interval, interval_within, mean_of_means, summarize
from sptune.compare.tables import score_table
from sptune.errors import InputError, SptuneError
from sptune.prompt_config import DEFAULT_BOTTLENECK_DIM
from sptune.tasks import BENCHMARK_TASKS

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


@pytest.fixture
def parts(data: dict[str, str]) -> dict[str, Any]:
    """A study of two methods on one task."""
    return {
        "methods": {"spt": {"num_prompt_layers": 1}, "lora": {"learning_rates": [1e-3, 2e-3]}},
        "tasks": {"words": data},
        "options": {"model": "a-model", "max_steps": 4},
        "seeds": [0, 1],
    }


def rows_of(study: Study, score: Any) -> list[dict[str, Any]]:
    """Rows of all runs, of which ``score(spec)`` says the score, or the error."""
    rows: list[dict[str, Any]] = []
    while pending := study.pending(rows):
        for spec in pending:
            found = score(spec)
            row: dict[str, Any] = {"run": spec.id, "task": spec.task, "method": spec.name, "seed": spec.seed,
                                   "tuning": spec.tuning, "versions": {"sptune": "0.1.0"}}  # fmt: skip
            if isinstance(found, str):
                rows.append({**row, "state": "failed", "error": found})
                continue
            test = {"score": found, "examples": 9 + spec.seed % 2}
            measured = {"score": found, "test": test, "parameters": {"added": 10}, "prompt_layers": [2],
                        "seconds": {"total": 3.0, "step": 0.1}, "peak_memory": None, "adapter_bytes": 5}  # fmt: skip
            rows.append({**row, "state": "done", **measured})
    return rows


def test_a_rate_at_the_end_of_its_grid_is_told(parts: dict[str, Any]) -> None:
    parts["methods"] = {"spt": {"learning_rates": [5e-3]}, "lora": {"learning_rates": [1e-3, 2e-3, 4e-3]}}
    tasks = {"low": 1, "middle": 2, "high": 3, "tied": 4}
    parts["tasks"] = {task: {**parts["tasks"]["words"], "max_steps": steps} for task, steps in tasks.items()}
    study = Study.from_mapping(parts, "study")
    best = {"low": [1e-3], "middle": [2e-3], "high": [4e-3], "tied": [1e-3, 2e-3]}
    alone, several = summarize(study, rows_of(study, lambda spec: float(spec.learning_rate in best[spec.task])))
    assert alone.outermost == []
    assert several.rates["tied"] == 1e-3
    assert several.outermost == ["low", "high"]


def test_rates_that_were_chosen_without_failed_runs_are_told(parts: dict[str, Any]) -> None:
    """A rate at the end of its grid is none to look beyond, where the next one failed, as of a full disk."""
    parts["methods"] = {"spt": {"learning_rates": [5e-3]}, "lora": {"learning_rates": [4e-3, 1e-3, 2e-3]}}
    tasks = {"low": 1, "middle": 2, "high": 3, "fine": 4}
    parts["tasks"] = {task: {**parts["tasks"]["words"], "max_steps": steps} for task, steps in tasks.items()}
    study = Study.from_mapping(parts, "study")
    best = {"low": 1e-3, "middle": 2e-3, "high": 4e-3, "fine": 1e-3}
    broken = {("low", 2e-3), ("middle", 4e-3), ("high", 1e-3), ("high", 2e-3), ("fine", 4e-3)}

    def score(spec: Any) -> Any:
        if spec.tuning and (spec.task, spec.learning_rate) in broken:
            return "no space left"
        return float(spec.learning_rate == best[spec.task])

    rows = rows_of(study, score)
    lines = summarize(study, rows)
    assert lines[1].outermost == ["fine"]
    (note,) = [note for note in score_table(study, lines, rows).notes if "Learning rates" in note]
    assert "failed: lora on low 0.002, lora on middle 0.004, lora on high 0.001, lora on high 0.002, lora on" in note
    assert "--retry-failed does these runs again" in note
    whole = rows_of(study, lambda spec: float(spec.learning_rate == best[spec.task]))
    assert not any("Learning rates" in note for note in score_table(study, summarize(study, whole), whole).notes)
    shared = Study.from_mapping({**parts, "tuning_tasks": ["low", "fine"]}, "study")
    assert summarize(shared, rows_of(shared, score))[1].outermost == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["lora", "lroa"]}, "'lroa' is an unknown method. Did you mean 'lora'?"),
        ({"methods": {"mine": {"method": "nothing"}}}, "'nothing' is an unknown method"),
        ({"methods": {"spt": {"rank": 3}}}, "'rank' is not a setting of 'spt'"),
        ({"methods": {"linear-probe": {"rank": 3}}}, "'rank' is not a setting of 'linear-probe'"),
        ({"methods": {"full": {"learning_rate": 3}}}, "'learning_rate' is not a setting of 'full'"),
        ({"methods": {"lora": {"lora_alfa": 3}}}, "'lora_alfa' is not a setting of 'lora'. Did you mean 'lora_alpha'?"),
        ({"methods": [{"lora": {"r": 4}}]}, "list names, or map names to their settings"),
        ({"methods": {"spt, twice": {"method": "spt"}}}, "the name 'spt, twice' has a comma"),
        ({"seeds": [0, 1000]}, "change one of them"),
        ({"seeds": [0, 8], "tuning_seeds": [7, 8]}, "8 is among the seeds and the tuning_seeds"),
        ({"tuning_seeds": []}, "tuning_seeds=[] is not allowed; give a list such as [1000, 1001, 1002]"),
        ({"tuning_seeds": 1000}, "tuning_seeds=1000 is not allowed"),
        ({"tuning_seeds": [True]}, "tuning_seeds=[True] is not allowed"),
        ({"tuning_seed": [1000]}, "or several as tuning_seeds: [1000, 1001, 1002]"),
        ({"tuning_seed": 7, "tuning_seeds": [7]}, "leave tuning_seed out"),
        ({"tuning_tasks": ["words", "word"]}, "give a list of tasks of this study (words)"),
        ({"tuning_tasks": "words"}, "tuning_tasks='words' is not allowed"),
        ({"methods": {"lora": {"from_layer": "upper"}}}, "from_layer='upper' is not allowed"),
        ({"methods": {"lora": {"from_layer": -1}}}, "from_layer=-1 is not allowed"),
        ({"methods": {"lora-upper": {"layers_to_transform": [1]}}}, "both say which layers are changed"),
        ({"methods": {"ia3": {"from_layer": 1}}}, "'from_layer' is not a setting of 'ia3'"),
        ({"methods": {"lora": {"learning_rates": [0]}}}, "give numbers above 0"),
        (
            {"methods": {"mine": {"method": "lora", "target_modules": {"query"}}}},
            "target_modules={'query'} of 'mine' is not allowed; give texts, numbers",
        ),
        ({"methods": {"lora": {"revision": date(2026, 1, 2)}}}, "revision=datetime.date(2026, 1, 2) of 'lora' is not"),
        ({"methods": {"lora": {"rank_pattern": {"query": 4, 1: 8}}}}, "mappings with texts as names"),
        ({"methods": {"houlsby": {"non_linearity": "relu", 3: 4}}}, "3=4 of 'houlsby' is not allowed"),
        ({"methods": {"spt": {"searcher": "magic"}}}, "magic"),
        ({"tasks": {}}, "a study needs tasks"),
        (
            {"tasks": {"words": {"train_fil": "x"}}},
            "task words: 'train_fil' is not an option. Did you mean 'train_file'?",
        ),
        ({"options": {"max_step": 3}}, "options: 'max_step' is not an option. Did you mean 'max_steps'?"),
        ({"options": {"searcher": "fair"}}, "options: 'searcher' does not hold for all methods"),
        (
            {"options": {"search": {"searcher": "fair"}}},
            "options: 'search' does not hold for all methods; write its options under a method, such as 'methods: "
            "{spt: {searcher: ...}}'. Leave it out here.",
        ),
        ({"tasks": {"words": {"prompts": {"bottleneck_dim": 3}}}}, "under a method, such as 'methods: {spt: {bottle"),
        ({"options": {"seed": 3}}, "write 'seeds: [...]' beside"),
        ({"options": {"learning_rate": 3}}, "write 'learning_rates: [...]' under a method"),
        ({"tasks": {"chat": {"task_kind": "generate"}}}, "writes text; train such models with sptune fit"),
        ({"options": {"linear_probe": False}}, "is decided by the comparison itself. Leave it out"),
        ({"tasks": {"words": {"text_columns": "review"}}}, "it takes a list of texts. Write ['review']."),
        ({"tasks": {"words": {"text_columns": "one, two"}}}, "Write ['one', 'two']."),
        ({"methods": {"spt": {"prompt_layers": "midle"}}}, "choose one of search, all, middle, first or a list"),
        ({"seeds": 3}, "give a list such as"),
        ({"seeds": [2**32]}, "seed=4294967296 is not allowed; choose a whole number from 0 to 4294967295"),
        ({"tuning_seeds": [2**32]}, "seed=4294967296 is not allowed"),
        ({"against": "linear-probe"}, "not one of the methods (spt, lora)"),
        ({"method": ["lora"]}, "not a field of a study; the fields are: methods"),
    ],
)
def test_what_cannot_be_a_study_is_refused(change: dict[str, Any], message: str, parts: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        Study.from_mapping({**parts, **change}, "study.yaml")
    assert message in str(refused.value)
    assert str(refused.value).startswith("study.yaml: ")


def test_a_study_says_all_that_it_holds_and_can_be_read_again(parts: dict[str, Any], tmp_path: Path) -> None:
    study = Study.from_mapping(parts, "study")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study.to_dict(), sort_keys=False))
    again = Study.read(file)
    assert again == study
    assert [spec.id for spec in again.final_runs({})] == [spec.id for spec in study.final_runs({})]


def test_every_method_of_the_table_can_be_named_and_read_again(parts: dict[str, Any]) -> None:
    study = Study.from_mapping({**parts, "methods": list(METHODS)}, "study")
    assert list(study.methods) == list(METHODS)
    assert study.against == "spt"
    assert Study.from_mapping(study.to_dict(), "study") == study


def test_paths_may_be_paths(parts: dict[str, Any], data: dict[str, str]) -> None:
    as_paths = {key: Path(file) for key, file in data.items()}
    study = Study.from_mapping({**parts, "tasks": {"words": as_paths}}, "study")
    assert yaml.safe_dump(study.to_dict()) == yaml.safe_dump(Study.from_mapping(parts, "study").to_dict())


def test_the_users_folder_stands_for_its_sign_in_a_study(
    parts: dict[str, Any], data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(data["train_file"]).parent))
    signed = {key: f"~/{Path(file).name}" for key, file in data.items()}
    assert Study.from_mapping({**parts, "tasks": {"words": signed}}, "study") == Study.from_mapping(parts, "study")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(parts))
    assert Study.read("~/study.yaml") == Study.from_mapping(parts, "study")


def test_an_empty_name_of_a_file_is_none(parts: dict[str, Any], data: dict[str, str]) -> None:
    train = {"train_file": data["train_file"]}
    empty = {"validation_file": "", "dataset": "", "gguf_file": ""}  # the task does without what holds for others
    options = {**parts["options"], "validation_file": data["test_file"]}
    study = Study.from_mapping({**parts, "options": options, "tasks": {"words": {**train, **empty}}}, "study")
    assert study == Study.from_mapping({**parts, "tasks": {"words": train}}, "study")


def test_files_that_are_not_what_they_were_are_refused(parts: dict[str, Any], data: dict[str, str]) -> None:
    """A run is known by what was in them when the study began."""
    train = Path(data["train_file"])
    study, text = Study.from_mapping(parts, "study"), train.read_text()
    spec = study.pending([])[0]
    spec.check_files()
    try:
        train.write_text(text + text.splitlines()[0] + "\n")
        assert study.pending([])[0].id == spec.id
        with pytest.raises(InputError, match=r"words: the data .* were changed"):
            spec.check_files()
    finally:
        train.write_text(text)


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_ready_made_studies_resolve(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting of every run, without a hub."""
    with pytest.raises(SystemExit) as left:
        main(["compare", "--study", str(file), "--dry-run", "--json"])
    assert not left.value.code
    runs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    study = Study.read(file)
    assert len({spec.id for spec in study.tuning_runs()}) == sum(run["tuning"] for run in runs)
    assert len(runs) - len(study.tuning_runs()) == len(study.methods) * len(study.tasks) * len(study.seeds)
    assert all(run["options"].get("task", "sst2") in BENCHMARK_TASKS for run in runs)


def test_a_run_is_known_by_its_settings_and_data_not_by_names(parts: dict[str, Any], data: dict[str, str]) -> None:
    def first(**changes: Any) -> str:
        return Study.from_mapping({**parts, **changes}, "study").final_runs({})[0].id

    own = first()
    assert first(tasks={"another name": data}) == own
    assert first(methods={"another name": {"method": "spt", "num_prompt_layers": 1}}) == own
    assert first(methods={"spt": {"num_prompt_layers": 2}}) != own
    assert first(options={**parts["options"], "max_steps": 5}) != own
    assert first(seeds=[3]) != own
    train = {"train_file": data["train_file"]}
    as_validation, as_test = ({**train, name: data["test_file"]} for name in ("validation_file", "test_file"))
    assert first(tasks={"words": as_validation}) != first(tasks={"words": as_test})
    assert first(methods={"spt": {"num_prompt_layers": 1, "bottleneck_dim": 4}}) == own  # the default
    assert first(options={**parts["options"], "activation_cache": False}) != own
    assert first(options={**parts["options"], "bf16": True}) == own  # as on a machine that has no such arithmetic
    assert first(methods={"lpt": {"searcher": "darts"}}) == first(methods={"lpt": None})  # its layer is given
    assert first(methods={"spt": {"searcher": "darts"}}) != first(methods={"spt": None})
    copied = Path(data["train_file"]).with_name("copy.jsonl")
    copied.write_text(Path(data["train_file"]).read_text())
    assert first(tasks={"words": {**data, "train_file": str(copied)}}) == own
    copied.write_text(Path(data["train_file"]).read_text().replace("fine", "bad"))
    assert first(tasks={"words": {**data, "train_file": str(copied)}}) != own


def test_another_default_of_prompts_makes_only_prompts_run_again(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> dict[str, str]:
        runs = Study.from_mapping({**parts, "methods": ["spt", "lora"]}, "study").final_runs({})
        return {run.name: run.id for run in runs if run.seed == 0}

    before = known()
    monkeypatch.setitem(DEFAULT_BOTTLENECK_DIM, "add", 5)
    assert known()["lora"] == before["lora"]
    assert known()["spt"] != before["spt"]


def test_rows_from_before_options_were_renamed_are_known(parts: dict[str, Any]) -> None:
    def known(**options: Any) -> list[str]:
        study = {**parts, "tasks": {"own": {"task": "sst2"}}, "options": {**parts["options"], **options}}
        return [spec.id for spec in Study.from_mapping(study, "study").final_runs({})]

    with pytest.warns(FutureWarning, match="is now"):
        short, without = known(prefix_cache_dtype="float16", data="copy"), known(prefix_cache=False, data="copy")
    assert known(activation_cache_dtype="float16", dataset="copy") == short
    assert known(activation_cache=False, dataset="copy") == without
    # As earlier versions knew the runs of lora with seed 0 and these options.
    assert (short[1], without[1]) == ("f3b11be58f3bba16", "73c6a429f7238c50")


def test_methods_keep_their_rows_when_they_are_renamed(parts: dict[str, Any]) -> None:
    def study(name: str, **more: Any) -> Study:
        return Study.from_mapping({**parts, "methods": ["spt", name], **more}, "study")

    with pytest.warns(FutureWarning, match="'head' is now 'linear-probe'"):
        old = study("head", against="head")
    new = study("linear-probe", against="linear-probe")
    assert old == new
    assert [spec.id for spec in old.final_runs({})] == [spec.id for spec in new.final_runs({})]
    with pytest.raises(InputError, match="twice; leave 'linear-probe' out"), pytest.warns(FutureWarning):
        Study.from_mapping({**parts, "methods": ["head", "linear-probe"]}, "study")


def test_a_setting_of_the_search_is_part_of_a_run_only_where_it_is_given(parts: dict[str, Any]) -> None:
    study = Study.from_mapping({**parts, "methods": {"spt": {"searcher": "spt_darts"}}}, "study")
    assert "consistency" not in study.final_runs({})[0].lasting_options()


def test_a_local_backbone_is_known_by_what_is_in_it(parts: dict[str, Any], tmp_path: Path) -> None:
    def first(model: Path) -> str:
        options = {**parts["options"], "model": str(model)}
        return Study.from_mapping({**parts, "options": options}, "study").final_runs({})[0].id

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    assert first(tmp_path / "here") == first(tmp_path / "there")
    (tmp_path / "there" / "model.safetensors").write_bytes(b"other weights")
    assert first(tmp_path / "here") != first(tmp_path / "there")


def test_local_data_are_known_by_what_is_in_their_folders(parts: dict[str, Any], tmp_path: Path) -> None:
    def first(folder: Path) -> str:
        return Study.from_mapping({**parts, "tasks": {"own": {"dataset": str(folder)}}}, "study").final_runs({})[0].id

    for name in ("here", "there"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "data.arrow").write_bytes(b"rows")
    assert first(tmp_path / "here") == first(tmp_path / "there")
    for hidden in (".git/index", ".DS_Store", "train/.cache/a", "train/.ipynb_checkpoints/data.arrow"):
        (tmp_path / "there" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "there" / hidden).write_bytes(b"what no run reads")
    assert first(tmp_path / "here") == first(tmp_path / "there")
    (tmp_path / "there" / "train" / "data.arrow").write_bytes(b"other rows")
    assert first(tmp_path / "here") != first(tmp_path / "there")


def test_what_is_taken_out_of_a_method_stays_out(parts: dict[str, Any]) -> None:
    study = Study.from_mapping({**parts, "methods": {"lpt": {"prompt_layers": None}}}, "study")
    assert study.methods["lpt"].searches
    assert Study.from_mapping(study.to_dict(), "study") == study


def test_to_ask_for_a_search_is_the_same_as_to_give_no_layers(parts: dict[str, Any]) -> None:
    def study(**settings: Any) -> Study:
        return Study.from_mapping({**parts, "methods": {"spt": settings}}, "study")

    asked, left_out = (
        study(**more, num_prompt_layers=2, searcher="fair") for more in ({"prompt_layers": "search"}, {})
    )
    assert asked == left_out
    assert asked.methods["spt"].searches
    assert [spec.id for spec in asked.final_runs({})] == [spec.id for spec in left_out.final_runs({})]
    more = study(prompt_layers="search", num_prompt_layers=1, searcher="fair")
    assert more.final_runs({})[0].id != asked.final_runs({})[0].id
    lpt = Study.from_mapping({**parts, "methods": {"lpt": {"prompt_layers": "search"}}}, "study")
    assert lpt == Study.from_mapping({**parts, "methods": {"lpt": {"prompt_layers": None}}}, "study")
    assert Study.from_mapping(lpt.to_dict(), "study") == lpt


def test_rates_are_chosen_on_another_draw_and_by_development_scores(parts: dict[str, Any]) -> None:
    study = Study.from_mapping(parts, "study")
    tuning = study.tuning_runs()
    assert {spec.seed for spec in tuning}.isdisjoint(study.seeds)
    assert [spec.name for spec in study.pending([]) if not spec.tuning] == []
    rows = rows_of(study, lambda spec: spec.learning_rate)
    assert study.chosen_rates(rows) == {("words", "spt"): 1e-2, ("words", "lora"): 2e-3}
    reported = [spec for spec in study.final_runs(study.chosen_rates(rows)) if spec.name == "lora"]
    assert {spec.learning_rate for spec in reported} == {2e-3}


def test_a_rate_is_chosen_by_its_mean_over_the_tuning_seeds(parts: dict[str, Any]) -> None:
    study = Study.from_mapping({**parts, "methods": {"lora": None}, "tuning_seeds": [7, 8, 9, 7]}, "study")
    assert study.tuning_seeds == (7, 8, 9)
    assert {(spec.seed, spec.learning_rate) for spec in study.tuning_runs()} == {
        (seed, rate) for seed in (7, 8, 9) for rate in METHODS["lora"].learning_rates
    }

    def chosen(scores: dict[float, list[Any]]) -> dict[tuple[str, str], float]:
        rows = rows_of(study, lambda spec: scores[spec.learning_rate][spec.seed - 7] if spec.tuning else 0.5)
        return study.chosen_rates(rows)

    key = ("words", "lora")
    # The best on two draws breaks down on the third.
    assert chosen({1e-3: [0.8, 0.7, 0.8], 2e-3: [0.8, 0.8, 0.8], 5e-3: [0.9, 0.9, 0.2]})[key] == 2e-3
    # A failed run is worse than any score.
    assert chosen({1e-3: [0.1, 0.1, 0.1], 2e-3: [0.8, "diverged", 0.8], 5e-3: [0.9, 0.9, "diverged"]})[key] == 1e-3
    fewest = {1e-3: ["diverged"] * 3, 2e-3: [0.8, "diverged", 0.8], 5e-3: ["diverged", 0.9, "diverged"]}
    assert chosen(fewest)[key] == 2e-3
    assert chosen({1e-3: [0.8, 0.7, 0.9], 2e-3: [0.7, 0.8, 0.9], 5e-3: [0.0] * 3})[key] == 1e-3  # of equal ones
    assert chosen({rate: ["diverged"] * 3 for rate in METHODS["lora"].learning_rates}) == {}
    most = [row for row in rows_of(study, lambda spec: 0.5) if row["seed"] != 9]
    assert study.chosen_rates(most) == {}, "no rate is chosen before all draws are there"


def test_one_rate_for_all_tasks_is_chosen_by_its_mean_over_the_tuning_tasks(parts: dict[str, Any]) -> None:
    tasks = {name: {**parts["tasks"]["words"], "max_length": 8 + i} for i, name in enumerate(("one", "two", "three"))}
    parts = {**parts, "tasks": tasks, "methods": {"lora": None, "spt": {"learning_rates": 7e-3}}}
    study = Study.from_mapping({**parts, "tuning_tasks": ["one", "three", "one"]}, "study")
    assert {spec.task for spec in study.tuning_runs()} == {"one", "three"}
    scores = {"one": {1e-3: 0.8, 2e-3: 0.7, 5e-3: 0.1}, "three": {1e-3: 0.5, 2e-3: 0.7, 5e-3: 0.8}}
    rows = rows_of(study, lambda spec: scores[spec.task][spec.learning_rate] if spec.tuning else 0.5)
    shared = {(task, "lora"): 2e-3 for task in tasks}
    assert study.chosen_rates(rows) == {**shared, **{(task, "spt"): 7e-3 for task in tasks}}
    only_one = [row for row in rows if row["task"] == "one"]
    assert {name for _, name in study.chosen_rates(only_one)} == {"spt"}, "no rate is chosen before all tasks are there"
    assert Study.from_mapping(study.to_dict(), "study") == study
    each = Study.from_mapping(parts, "study")
    assert {spec.task for spec in each.tuning_runs()} == set(tasks)


def test_one_tuning_seed_may_be_written_as_before(parts: dict[str, Any]) -> None:
    one = Study.from_mapping({**parts, "tuning_seed": 7}, "study")
    assert one == Study.from_mapping({**parts, "tuning_seeds": [7]}, "study")
    assert Study.from_mapping(one.to_dict(), "study") == one
    assert Study.from_mapping(parts, "study").tuning_seeds == (1000,)


def test_runs_of_before_are_still_known(parts: dict[str, Any]) -> None:
    """Rows of published studies are found by these hashes."""
    study = Study.from_mapping(
        {
            "methods": ["lora", "ia3", "linear-probe"], "seeds": [0],
            "tasks": {"sst2": {"task": "sst2", "model": "a-model", "few_shot": 500}},
        },
        "study",
    )  # fmt: skip
    known = {spec.name: spec.id for spec in study.final_runs({})}
    assert known == {"lora": "42ee61e19c740e99", "ia3": "b8a8eed7dae4b0e2", "linear-probe": "0eb59ccfb0fb94c7"}
    assert next(spec.id for spec in study.tuning_runs() if spec.name == "lora") == "6fe5ddf8fe514060"


def test_test_examples_are_counted_whatever_the_task_was_called_when_a_run_was_done(parts: dict[str, Any]) -> None:
    study = Study.from_mapping(parts, "study")
    rows = [{**row, "task": "older name"} for row in rows_of(study, lambda spec: 0.5)]
    assert "Test examples: words 9 to 10." in score_table(study, summarize(study, rows), rows).notes


def test_it_is_told_when_there_is_nothing_to_compare_with(parts: dict[str, Any]) -> None:
    study = Study.from_mapping(parts, "study")
    rows = rows_of(study, lambda spec: 0.5)

    def notes(own: list[dict[str, Any]]) -> str:
        return " ".join(score_table(study, summarize(study, own), own).notes)

    assert "No differences: spt has no results" in notes([row for row in rows if row["method"] != "spt"])
    assert "No differences" not in notes(rows)


def test_differences_over_fewer_tasks_are_told(parts: dict[str, Any]) -> None:
    tasks = {"words": parts["tasks"]["words"], "more": {**parts["tasks"]["words"], "batch_size": 8}}
    study = Study.from_mapping({**parts, "tasks": tasks}, "study")
    rows = rows_of(study, lambda spec: 0.5)
    told = "Not on all tasks of spt: lora."
    assert not any(told in note for note in score_table(study, summarize(study, rows), rows).notes)
    rows = [row for row in rows if (row["method"], row["task"], row["tuning"]) != ("lora", "more", False)]
    assert any(told in note for note in score_table(study, summarize(study, rows), rows).notes)


def test_of_several_tasks_there_is_an_interval_for_other_seeds_too(parts: dict[str, Any]) -> None:
    tasks = {"words": parts["tasks"]["words"], "more": {**parts["tasks"]["words"], "batch_size": 8}}
    study = Study.from_mapping({**parts, "tasks": tasks}, "study")
    # LoRA is ahead by .1 and .2 on one task, by .6 and .9 on the other.
    ahead = {("words", 0): 0.1, ("words", 1): 0.2, ("more", 0): 0.6, ("more", 1): 0.9}
    rows = rows_of(study, lambda spec: ahead.get((spec.task, spec.seed), 0.5) * (spec.method.name == "lora"))
    table = score_table(study, summarize(study, rows), rows)
    (lora,) = [dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == "lora"]
    low, high = interval_within({"words": [0.1, 0.2], "more": [0.6, 0.9]})
    assert lora["on other seeds"] == f"[{low:+.4f}, {high:+.4f}]"
    low, high = interval({"words": [0.15], "more": [0.75]})
    assert lora["minus spt (95 % interval)"] == f"+0.4500 [{low:+.4f}, {high:+.4f}]"


def test_runs_of_several_versions_are_told(parts: dict[str, Any]) -> None:
    study = Study.from_mapping(parts, "study")
    rows = rows_of(study, lambda spec: 0.5)
    told = "several versions of sptune (0.0.9, 0.1.0)"
    assert not any(told in note for note in score_table(study, summarize(study, rows), rows).notes)
    rows[-1]["versions"]["sptune"] = "0.0.9"
    assert any(told in note for note in score_table(study, summarize(study, rows), rows).notes)


def test_nothing_takes_a_multiple_of_no_time(parts: dict[str, Any]) -> None:
    study = Study.from_mapping({**parts, "against": "lora"}, "study")
    rows = rows_of(study, lambda spec: 0.5)
    assert summarize(study, rows)[0].speed == 1.0
    for row in rows:
        row["seconds"]["total"] *= row["method"] != "lora"
    assert math.isnan(summarize(study, rows)[0].speed)


def test_rates_may_be_written_as_yaml_reads_them(parts: dict[str, Any]) -> None:
    parts["methods"] = yaml.safe_load("lora: {learning_rates: [1e-3, 2.0e-3]}")
    assert Study.from_mapping(parts, "study").methods["lora"].learning_rates == (1e-3, 2e-3)


def test_a_rate_that_is_listed_twice_counts_once(parts: dict[str, Any]) -> None:
    parts["methods"] = {"lora": {"learning_rates": [3e-3, 1e-3, "1e-3", 1, 1.0]}}
    study = Study.from_mapping(parts, "study")
    assert study.methods["lora"].learning_rates == (3e-3, 1e-3, 1.0)
    assert study.chosen_rates(rows_of(study, lambda spec: spec.learning_rate == 3e-3)) == {("words", "lora"): 3e-3}


def test_other_numbers_may_be_written_so_too(parts: dict[str, Any]) -> None:
    options = {**parts["options"], "weight_decay": "2e-2"}
    study = Study.from_mapping({**parts, "options": options, "methods": {"spt-prepend": {"mixing_rate": "5e-1"}}}, "x")
    made = study.final_runs({})[0].run_options("")
    assert (made.weight_decay, made.prompts.mixing_rate) == (0.02, 0.5)
    assert study.final_runs({})[0].lasting_options()["mixing_rate"] == 0.5


def test_of_equal_rates_the_lower_is_taken_and_failed_ones_do_not_count(parts: dict[str, Any]) -> None:
    study = Study.from_mapping(parts, "study")
    assert study.chosen_rates(rows_of(study, lambda spec: 0.5))["words", "lora"] == 1e-3
    only_one = rows_of(study, lambda spec: "broken" if spec.learning_rate == 1e-3 else 0.5)
    assert study.chosen_rates(only_one)["words", "lora"] == 2e-3
    none = rows_of(study, lambda spec: "broken" if spec.name == "lora" else 0.5)
    assert ("words", "lora") not in study.chosen_rates(none)
    assert summarize(study, none)[1].failed == 2


def test_methods_are_compared_on_the_tasks_and_seeds_that_both_have_done(parts: dict[str, Any]) -> None:
    tasks = {"words": parts["tasks"]["words"], "more": {**parts["tasks"]["words"], "batch_size": 8}}
    study = Study.from_mapping({**parts, "tasks": tasks}, "study")
    values = {("spt", "words"): 0.8, ("spt", "more"): 0.6, ("lora", "words"): 0.7, ("lora", "more"): 0.7}

    def score(spec: Any) -> Any:
        if (spec.name, spec.task, spec.seed) == ("lora", "more", 1):
            return "out of memory"
        return values[spec.name, spec.task] + 0.1 * (spec.seed == 1)

    spt, lora = summarize(study, rows_of(study, score))
    assert (spt.runs, lora.runs, lora.failed) == (4, 3, 1)
    assert spt.scores == pytest.approx({"words": 0.85, "more": 0.65})
    assert spt.mean == pytest.approx(0.75)
    assert spt.deviation == pytest.approx(0.1 / math.sqrt(2))
    assert math.isnan(spt.difference)
    assert lora.pairs == 3
    assert lora.difference == pytest.approx(0.0)  # .1 worse on one task, .1 better on the other
    # Two tasks: standard error .1, one degree of freedom.
    assert (lora.low, lora.high) == pytest.approx((-1.2706, 1.2706), abs=1e-3)
    assert spt.layers == {"words": {2: 2}, "more": {2: 2}}


def test_methods_are_compared_on_the_tasks_of_the_reference(parts: dict[str, Any]) -> None:
    """On the others its runs failed."""
    parts["methods"] = {"spt": {"learning_rates": 5e-3}, "lora": {"learning_rates": 1e-3}}
    tasks = {"words": parts["tasks"]["words"], "more": {**parts["tasks"]["words"], "batch_size": 8}}
    study = Study.from_mapping({**parts, "tasks": tasks}, "study")

    def score(spec: Any) -> Any:
        if (spec.name, spec.task) == ("spt", "more"):
            return "out of memory"
        return (0.9 if spec.task == "words" else 0.3) + {"words": 0.01, "more": 0.2}[spec.task] * spec.seed

    rows = rows_of(study, score)
    for row in rows:
        if row["task"] == "more" and row["state"] == "done":
            row.update(seconds={"total": 1000.0, "step": 9.0}, parameters={"added": 999}, adapter_bytes=999)
            row["peak_memory"] = 999
    spt, lora = summarize(study, rows)
    for name in ("mean", "deviation", "parameters", "adapter_bytes", "seconds", "step_seconds", "memory"):
        assert getattr(lora, name) == pytest.approx(getattr(spt, name)), name
    assert lora.scores == pytest.approx({"words": 0.905, "more": 0.4})
    told = "Means, sd and costs are over the tasks that spt has done: words. It lacks more."
    assert told in score_table(study, [spt, lora], rows).notes
    # The other way round lora has no mean, and that it lacks a task is told.
    lora, spt = summarize(Study.from_mapping({**parts, "tasks": tasks, "against": "lora"}, "study"), rows)[::-1]
    assert lora.mean == pytest.approx(0.6525)
    assert math.isnan(spt.mean)
    assert math.isnan(spt.deviation)
    assert math.isnan(spt.seconds)
    # Without any run of the reference all tasks count.
    _, lora = summarize(study, [row for row in rows if row["method"] == "lora"])
    assert lora.mean == pytest.approx(0.6525)
    assert lora.seconds == pytest.approx(501.5)


def test_times_of_different_machines_are_not_compared(parts: dict[str, Any]) -> None:
    parts["methods"] = {"spt": {"learning_rates": 5e-3}, "lora": {"learning_rates": 1e-3}}
    tasks = {"words": parts["tasks"]["words"], "more": {**parts["tasks"]["words"], "batch_size": 8}}
    study = Study.from_mapping({**parts, "tasks": tasks, "seeds": [0, 1, 2]}, "study")
    rows = rows_of(study, lambda spec: 0.5)
    here = {"device": "cpu", "processor": "one", "bf16": False}
    for row in rows:
        row.update(here, peak_memory=7, seconds={"total": {"spt": 2.0, "lora": 3.0}[row["method"]], "step": 0.1})

    def change(method: str, where: dict[str, Any], times: float = 100.0, **chosen: Any) -> None:
        for row in rows:
            if row["method"] == method and all(row[key] == value for key, value in chosen.items()):
                row.update(where, seconds={"total": times, "step": times}, peak_memory=times)

    # One seed of both on a faster machine: its ratio counts, its times do not.
    for method, times in (("spt", 0.2), ("lora", 0.2)):
        change(method, {"processor": "another"}, times, seed=2)
    spt, lora = summarize(study, rows)
    assert (spt.seconds, lora.seconds, spt.memory) == (2.0, 3.0, 7)
    assert spt.machine == lora.machine == "one, no autocast"
    assert lora.speed == 1.5
    # No task without times, so that medians are over the same ones.
    for where in ({"processor": "another"}, {"bf16": True}, {"device": "a GPU"}):
        change("lora", {**here, **where}, task="more")
        spt, lora = summarize(study, rows)
        assert (spt.seconds, lora.runs, lora.difference) == (2.0, 6, 0.0)
        assert math.isnan(lora.seconds)
        assert math.isnan(lora.step_seconds)
        assert lora.memory is None
        assert lora.machine == ""
        assert lora.to_dict()["seconds"] is None
    # What is left when nothing was timed together.
    change("lora", {"device": "a GPU"})
    assert math.isnan(summarize(study, rows)[1].speed)
    # Hosts of the same GPU do not matter.
    change("spt", {"device": "a GPU", "processor": "third"})
    assert summarize(study, rows)[1].seconds == 100.0
    assert summarize(study, rows)[1].machine == "a GPU, no autocast"
    # Without the reference's runs, the machine with the most of all.
    (alone,) = [line for line in summarize(study, [row for row in rows if row["method"] == "lora"]) if line.runs]
    assert alone.seconds == 100.0


def test_the_sample_of_an_interval_are_the_tasks_and_of_a_single_task_its_seeds() -> None:
    """However many seeds: they say nothing about another task."""
    tasks = {"a": [1.0, 1.0], "b": [2.0] * 9, "c": [1.0, 5.0, 3.0]}
    assert mean_of_means(tasks) == 2
    # Means 1, 2 and 3: standard error 1 / sqrt(3), two degrees of freedom.
    assert interval(tasks) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)), abs=1e-3)
    assert interval({"a": [1.0, 2.0, 3.0]}) == pytest.approx(interval(tasks))
    assert all(map(math.isnan, interval({"a": [1.0]})))
    assert all(map(math.isnan, interval({"a": [0.3 - 0.2, 0.1, 0.1]})))  # equal, which is no certainty


def test_the_sample_of_an_interval_within_tasks_are_the_seeds_of_each() -> None:
    """For two tasks it is half of Welch's interval for a sum of means."""
    tasks = {"a": [0.1, 0.3, 0.2, 0.5], "b": [1.0, 3.0, 1.5]}
    welch = stats.ttest_ind(tasks["a"], [-value for value in tasks["b"]], equal_var=False).confidence_interval()
    assert interval_within(tasks) == pytest.approx((welch.low / 2, welch.high / 2))
    assert interval_within({"a": tasks["a"]}) == pytest.approx(interval({"a": tasks["a"]}))
    assert interval_within({**tasks, "c": [2.0, 2.0]}) == pytest.approx([2 / 3 + end / 3 for end in welch])
    assert all(map(math.isnan, interval_within({**tasks, "c": [2.0]})))
    assert all(map(math.isnan, interval_within({"a": [0.3 - 0.2, 0.1, 0.1], "b": [1.0, 1.0]})))


def test_a_line_that_was_cut_off_is_dropped_and_replaced(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append({"run": "a", "state": "done"})
    with log.path.open("a") as file:
        file.write('{"run": "b", "task": "ü')
    os.truncate(log.path, log.path.stat().st_size - 1)  # in the middle of a letter
    assert [row["run"] for row in RunLog(tmp_path).read()] == ["a"]
    log.append({"run": "c", "state": "failed"})
    assert [row["run"] for row in RunLog(tmp_path).read()] == ["a", "c"]
    log.forget_failed(["a", "c"])
    assert [row["run"] for row in RunLog(tmp_path).read()] == ["a"]


def test_a_whole_line_without_a_line_break_is_kept(tmp_path: Path) -> None:
    """As some editors leave a file."""
    (tmp_path / "runs.jsonl").write_text('{"run": "a", "state": "done"}\n{"run": "b", "state": "done"}')
    log = RunLog(tmp_path)
    assert [row["run"] for row in log.read()] == ["a", "b"]
    log.append({"run": "c", "state": "done"})
    assert [row["run"] for row in log.read()] == ["a", "b", "c"]


def test_a_run_has_one_worker_at_a_time(tmp_path: Path) -> None:
    own = RunLog(tmp_path).claim("a")
    assert own is not None
    assert RunLog(tmp_path).claim("a") is None
    assert RunLog(tmp_path).claim("b") is not None
    own.release()
    assert RunLog(tmp_path).claim("a") is not None


@pytest.mark.parametrize("writing", [lambda log: log.claim("a"), lambda log: log.append({"run": "a"})])
@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_is_made_again_in_place_of_a_removed_one_is_not_taken_for_it(
    tmp_path: Path, writing: Callable[[RunLog], Any], made_again: bool
) -> None:
    """Taking a lock makes the folder of locks."""
    folder = tmp_path / "study"
    log = RunLog(folder)
    folder.rename(tmp_path / "moved")
    if made_again:
        (folder / "locks").mkdir(parents=True)
    with pytest.raises(SptuneError, match="was removed or moved"):
        writing(log)
    assert not folder.exists()


def test_names_of_methods_in_a_picture_can_be_read(tmp_path: Path) -> None:
    """None covers another or leaves the picture, however close the points are; the picture is a file."""
    lines = [
        SimpleNamespace(method=f"method-{index}", mean=0.8 + 0.001 * (index % 5), deviation=0.01,
                        parameters=0 if index == 0 else 10_000 * 1.1**index, seconds=10.0 + index)
        for index in range(18)
    ]  # fmt: skip
    for cost in ("parameters", "seconds"):
        path = tmp_path / f"{cost}.png"
        figure = plot_scores(lines, cost, "method-3", path)
        assert path.stat().st_size > 0
        (axes,) = figure.axes
        renderer = cast(Any, figure.canvas).get_renderer()
        boxes = {text.get_text(): Text.get_window_extent(text, renderer) for text in axes.texts}
        assert set(boxes) == {line.method for line in lines}
        for (one, box), (other, beside) in combinations(boxes.items(), 2):
            assert not box.overlaps(beside), (one, other)
        for box in boxes.values():
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = ["spt $5_$6", "cost_$5_to_$_6", r"\$x$"]
    lines: list[Any] = [
        SimpleNamespace(method=name, mean=0.8, deviation=0.01, parameters=9, seconds=1.0, runs=3, searches=True,
                        layers={name: {2: 3}})
        for name in names
    ]  # fmt: skip
    drawn = plot_scores(lines, "seconds", names[0], tmp_path / "scores.png").axes[0].texts
    assert sorted(text.get_text() for text in drawn) == sorted(names)
    layers = plot_layers(lines[:1], tmp_path / "layers.png").axes[0]
    assert [label.get_text() for label in layers.get_yticklabels()] == names[:1]
    assert not any(text.get_parse_math() for text in (*drawn, *layers.get_yticklabels()))
