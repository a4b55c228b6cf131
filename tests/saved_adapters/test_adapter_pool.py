"""One backbone with many adapters: mixed batches, changes while others answer, and folders that cannot be loaded."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sptune import predict
from sptune.errors import InputError, UnknownAdapterError
from sptune.saved_adapters.adapter_folder import AdapterFolder, named_folders
from sptune.saved_adapters.adapter_pool import AdapterPool
from tiny_adapters import write_tiny_adapter, write_tiny_writer

TEXTS = ["a lovely film", "the scenes was dull and the actors tired", "it", "this story moving moving moving"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, masked_lm: str) -> dict[str, Path]:
    """Three classifiers: other labels, other columns, other layers."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "films": write_tiny_adapter(root / "films", masked_lm, 0, prompt_layers=[0, 2]),
        "kinds": write_tiny_adapter(root / "kinds", masked_lm, 1, labels=("who", "what", "where"), max_length=12),
        "pairs": write_tiny_adapter(
            root / "pairs", masked_lm, 2, labels=("a", "b", "c", "d"), text_fields=("one", "two")
        ),
    }


@pytest.fixture
def requests() -> list[tuple[str, Any]]:
    """Requests to all three, mixed."""
    by_text = [[("films", text), ("kinds", text), ("pairs", {"one": text, "two": TEXTS[0]})] for text in TEXTS]
    return [request for own in by_text for request in own]


def assert_same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """The same predictions, with scores that differ by rounding at most."""
    assert [{**row, "scores": None} for row in rows] == [{**row, "scores": None} for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_a_mixed_batch_answers_as_each_adapter_alone(folders: dict[str, Path], requests: list[tuple[str, Any]]) -> None:
    rows = AdapterPool(folders).predict(requests)
    pools = {name: AdapterPool(folder) for name, folder in folders.items()}
    assert_same(rows, [pools[name].predict([(name, text)])[0] for name, text in requests])
    assert [list(row["scores"]) for row in rows[:3]] == [
        ["good", "bad"],
        ["who", "what", "where"],
        ["a", "b", "c", "d"],
    ]
    assert list(rows[2])[:2] == ["one", "two"]


def test_verbalizers_of_several_templates_and_label_words(tmp_path: Path, masked_lm: str) -> None:
    folders = {
        "films": write_tiny_adapter(tmp_path / "films", masked_lm, 3, label_words=("good", "bad")),
        "moods": write_tiny_adapter(
            tmp_path / "moods", masked_lm, 4, labels=("x", "y", "z"), label_words=("fine", "dull", "clever"),
            text_fields=("first", "second"),
        ),
    }  # fmt: skip
    requests = [("films", TEXTS[0]), ("moods", {"first": TEXTS[1], "second": "film"}), ("films", TEXTS[3])]
    alone = [AdapterPool(folders[name]).predict([(name, text)])[0] for name, text in requests]
    assert_same(AdapterPool(folders).predict(requests), alone)


def test_prepended_prompts_beside_added_ones(folders: dict[str, Path], masked_lm: str, tmp_path: Path) -> None:
    front = write_tiny_adapter(
        tmp_path / "front", masked_lm, 5, placement="prepend", num_virtual_tokens=2, generator="appg"
    )
    requests = [("front", TEXTS[1]), ("films", TEXTS[0]), ("front", TEXTS[2]), ("kinds", TEXTS[1])]
    given = {**folders, "front": front}
    alone = [AdapterPool(given[name]).predict([(name, text)])[0] for name, text in requests]
    assert_same(AdapterPool(given).predict(requests), alone)


def test_rows_of_a_file_name_their_adapters(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"who": "films", "text": TEXTS[0]}, {"who": "pairs", "one": TEXTS[1], "two": "film"},
            {"who": "mine", "text": TEXTS[2]}, {"who": "films", "text": TEXTS[1]}]  # fmt: skip
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [str(folders["films"]), f"mine={folders['kinds']}", str(folders["pairs"])]
    predicted = predict(given, file, adapter_column="who")
    assert [{name: row[name] for name in asked} for row, asked in zip(predicted, rows, strict=True)] == rows
    for row, name in zip(predicted, ("films", "pairs", "kinds", "films"), strict=True):
        alone = tmp_path / "alone.jsonl"
        alone.write_text(json.dumps({key: row[key] for key in row if key in ("text", "one", "two")}))
        assert_same([row], [{"who": row["who"], **predict(folders[name], alone)[0]}])


def test_writers_and_classifiers_answer_together(causal_lm: str, tmp_path: Path) -> None:
    """As each adapter by itself does through `predict`; one prompt leaves few positions of the model."""
    folders = {name: write_tiny_writer(tmp_path / name, causal_lm, seed) for seed, name in enumerate(("one", "two"))}
    folders["long"] = write_tiny_writer(tmp_path / "long", causal_lm, 2, max_length=38, max_new_tokens=20)
    folders["films"] = write_tiny_adapter(
        tmp_path / "films", causal_lm, 4, label_words=("good", "bad"), head="causal_lm"
    )
    long = " ".join(TEXTS[1:2] * 4)
    rows = [
        {"who": "one", "prompt": TEXTS[0]},
        {"who": "films", "text": TEXTS[1]},
        {"who": "two", "prompt": TEXTS[2]},
        {"who": "long", "prompt": long},
        {"who": "one", "prompt": TEXTS[3]},
        {"who": "long", "prompt": "it"},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    together = predict(folders, file, adapter_column="who")
    assert any(row.get("generated") for row in together)
    for row, asked in zip(together, rows, strict=True):
        file.write_text(json.dumps(asked))
        (alone,) = predict(folders[asked["who"]], file)
        if "scores" in row:
            assert_same([row], [{"who": asked["who"], **alone}])
        else:
            assert row == {"who": asked["who"], **alone}
    pool = AdapterPool(folders)
    requests = [(row["who"], row.get("prompt") or row["text"]) for row in rows]
    assert [one.get("generated") for one in pool.predict(requests)] == [one.get("generated") for one in together]
    (short,) = pool.predict([("long", "it")], max_new_tokens=1)
    assert len(short["generated"].split()) <= 1
    with pytest.raises(InputError, match="request 0, field 'prompt'"):
        pool.predict([("one", "")])


def test_a_file_with_wrong_names_is_refused_with_all_lines(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sptune.saved_adapters.adapter_pool.load_backbone", None)  # nothing is loaded
    file = tmp_path / "texts.csv"
    file.write_text("who,text\nfilms,a film\nfilm,a film\n,a film\nkinds,\n")
    with pytest.raises(InputError) as refusal:
        predict([folders["films"], folders["kinds"]], file, adapter_column="who")
    message = str(refusal.value)
    assert "texts.csv:3, field 'who', value 'film': is not the name of an adapter" in message
    assert "'films', 'kinds'" in message
    assert "texts.csv:4, field 'who', value '': names no adapter" in message
    assert "texts.csv:5, field 'text'" in message
    with pytest.raises(InputError, match="no column 'adapter'; found 'who', 'text'"):
        predict([folders["films"], folders["kinds"]], file, adapter_column="adapter")
    with pytest.raises(InputError, match="--adapter-column"):
        predict([folders["films"], folders["kinds"]], file)


def test_names_of_adapters(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert named_folders(["runs/films/adapter", "x=runs/17", tmp_path / "a=b"]) == {
        "films": Path("runs/films/adapter"), "x": Path("runs/17"), "a=b": tmp_path / "a=b",
    }  # fmt: skip
    with pytest.raises(InputError, match="both named 'films'"):
        named_folders(["one/films", "two/films"])
    with pytest.raises(InputError, match="empty"):
        named_folders(["=one"])


def test_adapters_change_between_calls(folders: dict[str, Path]) -> None:
    pool = AdapterPool({"films": folders["films"]})
    before = pool.predict([("films", TEXTS[0])])
    pool.put("kinds", folders["kinds"])
    assert pool.predict([("films", TEXTS[0])]) == before
    pool.put("films", folders["kinds"])
    first, second = pool.predict([("films", TEXTS[0]), ("kinds", TEXTS[0])])
    assert first == second
    pool.remove("kinds")
    with pytest.raises(UnknownAdapterError, match="No adapter 'kinds' is loaded; loaded are: films"):
        pool.predict([("kinds", TEXTS[0])])
    pool.remove("films")
    pool.put("again", folders["films"])
    assert pool.predict([("again", TEXTS[0])]) == before
    assert len(pool.model.peft_config) == 1


def test_threads_see_the_old_or_the_new_version(folders: dict[str, Path]) -> None:
    pool = AdapterPool({"changing": folders["films"], "kinds": folders["kinds"]})
    request = [("changing", TEXTS[0]), ("kinds", TEXTS[1])]
    old, fixed = pool.predict(request)
    new = AdapterPool(folders["kinds"]).predict([("kinds", TEXTS[0])])[0]
    stop, wrong = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answer, other = pool.predict(request)
            expected = old if set(answer["scores"]) == set(old["scores"]) else new
            if answer["scores"] != pytest.approx(expected["scores"], abs=1e-5) or other["scores"] != pytest.approx(
                fixed["scores"], abs=1e-5
            ):
                wrong.append((answer, other))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(10):
        pool.put("changing", folders["kinds" if number % 2 == 0 else "films"])
        pool.put(f"more{number}", folders["pairs"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (("pairs", "one text"), "'one', 'two'"),
        (("films", {"txt": "a"}), "request 0: the columns 'txt' were given, but the adapter reads 'text'"),
        (("films", " \t"), "request 0, field 'text', value ' \\\\t': empty text"),
        (("films", {"text": 3}), "a number, not text"),
        (("other", "a"), "No adapter 'other' is loaded; loaded are: films, kinds, pairs"),
    ],
)
def test_wrong_requests(folders: dict[str, Path], text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdapterPool(folders).predict([text])


def changed_json(folder: Path, file: str, change: Any) -> None:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def changed_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    change(weights)
    save_file(weights, folder / "adapter_model.safetensors")


BROKEN = {
    "weights in a pickle": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "holds no adapter_model.safetensors",
    ),
    "cut off": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-40]
        ),
        "cannot be read as safetensors",
    ),
    "another method": (
        lambda folder: changed_json(folder, "adapter_config.json", lambda one: one.update(peft_type="LORA")),
        "holds a LORA adapter",
    ),
    "not an object": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not an SPT adapter"),
    "another backbone": (
        lambda folder: changed_json(folder, "task.json", lambda one: one["backbone"].update(model="/another")),
        "another backbone than .*model: '/another'",
    ),
    "a part is missing": (
        lambda folder: changed_json(folder, "task.json", lambda one: one["backbone"].pop("head")),
        "task.json: a value is missing",
    ),
    "a huge generator": (
        lambda folder: changed_json(folder, "adapter_config.json", lambda one: one.update(bottleneck_dim=10**6)),
        "do not fit",
    ),
    "an impossible generator": (
        lambda folder: changed_json(folder, "adapter_config.json", lambda one: one.update(bottleneck_dim=10**9)),
        "adapter_config.json: bottleneck_dim=1000000000 is not allowed",
    ),
    "one class too many": (
        lambda folder: changed_json(folder, "task.json", lambda one: one["task"]["labels"].append("third")),
        "do not fit",
    ),
    "a missing tensor": (
        lambda folder: changed_weights(folder, lambda weights: weights.pop(next(iter(weights)))),
        "do not fit",
    ),
    "not a number": (
        lambda folder: changed_weights(folder, lambda weights: [one.fill_(torch.nan) for one in weights.values()]),
        "not finite",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_folder_that_cannot_be_loaded_changes_nothing(folders: dict[str, Path], tmp_path: Path, broken: str) -> None:
    pool = AdapterPool(folders["films"])
    before = pool.predict([("films", TEXTS[0])])
    shutil.copytree(folders["films"], tmp_path / "broken")
    damage, message = BROKEN[broken]
    damage(tmp_path / "broken")
    if broken != "another backbone":
        with pytest.raises(InputError, match=message):
            AdapterPool(tmp_path / "broken")
    for name in ("films", "new"):
        with pytest.raises(InputError, match=message):
            pool.put(name, tmp_path / "broken")
    assert pool.predict([("films", TEXTS[0])]) == before
    assert list(pool.adapters) == ["films"]
    assert len(pool.model.peft_config) == 1


def test_more_tokens_than_the_backbone_takes_are_refused(
    folders: dict[str, Path], tmp_path: Path, causal_lm: str
) -> None:
    for name, folder in {"films": folders["films"], "writer": write_tiny_writer(tmp_path / "w", causal_lm, 0)}.items():
        long = shutil.copytree(folder, tmp_path / name)
        document = json.loads((long / "task.json").read_text(encoding="utf-8"))
        (long / "task.json").write_text(json.dumps({**document, "max_length": 10**9}), encoding="utf-8")
        refusal = rf"{name}.task\.json: max_length=1000000000 is more than the \d+ tokens this backbone takes"
        pool = AdapterPool({"good": folder})
        with pytest.raises(InputError, match=refusal):
            pool.put("long", long)
        assert list(pool.adapters) == ["good"]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "it", "prompt": "it"}) + "\n", encoding="utf-8")
        with pytest.raises(InputError, match=refusal):
            predict(long, tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("kind", "column"), [("text", "prediction"), ("text", "scores"), ("prompt", "prompt"), ("prompt", "generated")]
)
def test_a_column_of_names_that_the_output_would_replace_is_refused(
    folders: dict[str, Path], tmp_path: Path, causal_lm: str, monkeypatch: pytest.MonkeyPatch, kind: str, column: str
) -> None:
    folder = folders["films"] if kind == "text" else write_tiny_writer(tmp_path / "films", causal_lm, 0)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({kind: "it", column: "films"}) + "\n", encoding="utf-8")
    monkeypatch.setattr("sptune.saved_adapters.adapter_pool.load_backbone", None)  # nothing is loaded
    with pytest.raises(InputError, match=rf"{column}.*rename the column"):
        predict(folder, file, adapter_column=column)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter_config.json", lambda text: "[" * 100_000, "cannot be read as JSON"),
        ("task.json", lambda text: '{"task":' * 100_000, "cannot be read as JSON"),
        ("task.json", lambda text: text.replace('"max_length": 24', '"max_length": Infinity'), "has the wrong type"),
        ("task.json", lambda text: text.replace('"good"', "1"), "labels contains 1, which is not text"),
        ("task.json", lambda text: text.replace('"text"', "null"), "text_fields contains None, which is not text"),
    ],
)
def test_files_with_values_of_the_wrong_type_are_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, change: Callable[[str], str], message: str
) -> None:
    broken = shutil.copytree(folders["films"], tmp_path / "films")
    text = (broken / file).read_text(encoding="utf-8")
    (broken / file).write_text(change(text), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{file}.*{message}"):
        AdapterFolder.read(broken)
