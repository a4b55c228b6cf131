import json
import math
from dataclasses import replace

import pytest

from sptune import SPTConfig
from sptune.errors import InputError
from sptune.search import SearchConfig, SearchResult


@pytest.fixture
def result():
    history = [
        {"step": 1, "gates": [0.5, 0.5], "weight_loss": 1.25, "gate_loss": None, "consistency": 0.125},
        {"step": 2, "gates": [0.51, 0.49], "weight_loss": 1.2, "gate_loss": 1.3, "consistency": 0.1},
    ]
    return SearchResult(
        prompt_layers=[1],
        candidate_layers=[1, 3],
        scores=[0.51, 0.49],
        gates=[0.51, 0.49],
        history=history,
        config=SPTConfig(task_type="SEQ_CLS", prompt_layers=[1], modules_to_save=["classifier"]),
        search=SearchConfig(num_prompt_layers=1, seed=3),
        seconds=1.5,
        steps=2,
    )


def test_what_is_saved_is_loaded(result, tmp_path):
    path = tmp_path / "run" / "search.json"
    result.save(path)
    assert SearchResult.load(path) == result
    assert [file.name for file in path.parent.iterdir()] == ["search.json"], "nothing is left beside the file"


def test_the_users_folder_stands_for_its_sign(result, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result.save("~/search.json")
    assert SearchResult.load("~/search.json") == SearchResult.load(tmp_path / "search.json") == result
    result.plot("~/search.png")
    assert (tmp_path / "search.png").exists()


def test_what_diverged_is_saved_as_json(result, tmp_path):
    path = tmp_path / "search.json"
    diverged = replace(result, scores=[-0.5, -math.inf], gates=None, history=[{"step": 2, "losses": [0.5, math.inf]}])
    diverged.save(path)
    saved = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert saved["scores"] == [-0.5, None]
    loaded = SearchResult.load(path)
    assert loaded == replace(diverged, history=[{"step": 2, "losses": [0.5, None]}])
    loaded.plot(tmp_path / "search.png")


def test_a_failed_save_leaves_the_old_file_whole(result, tmp_path):
    path = tmp_path / "search.json"
    result.save(path)
    with pytest.raises(TypeError):
        replace(result, seconds=object()).save(path)
    assert SearchResult.load(path) == result


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: there is no such file"):
        SearchResult.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "cannot be read as JSON"), ("[1]", "not a search result"), ('{"gates": []}', "'prompt_layers'")],
)
def test_another_file_is_refused(tmp_path, text, complaint):
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        SearchResult.load(path)


def test_unknown_fields_of_a_newer_version_are_passed_over(result, tmp_path):
    path = tmp_path / "search.json"
    path.write_text(json.dumps({**result.to_dict(), "cost": 3}))
    assert SearchResult.load(path) == result


def test_plot_writes_a_picture(result, tmp_path):
    figure = result.plot(tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert "Chosen: layer 1" in [axes.get_title(loc="left") for axes in figure.axes]


def test_what_diverged_lies_beyond_the_picture(result, tmp_path):
    scores = [-0.5] * (len(result.scores) - 1) + [-math.inf]
    axes = replace(result, scores=scores, gates=None).plot(tmp_path / "search.png").axes[-1]
    assert all(map(math.isfinite, axes.get_ylim()))


def test_a_fixed_setting_has_nothing_to_plot(result):
    fixed = replace(result, history=[], search=SearchConfig(searcher="middle"))
    with pytest.raises(InputError, match="'middle' chose the prompt layers"):
        fixed.plot()
