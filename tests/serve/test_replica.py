"""Replicas that share a store: each serves what the store holds, whenever it started."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_adapters import write_tiny_adapter, write_tiny_predictor

pytest.importorskip("ray.serve")

from sptune.errors import InputError, TakenNameError, UnknownAdapterError
from sptune.serve.adapter_store import AdapterStore
from sptune.serve.replica import AdapterRequest, Replica
from sptune.tasks import Task


@pytest.fixture
def store(tmp_path: Path, masked_lm: str) -> Path:
    """A store with two adapters."""
    adapters = {name: write_tiny_adapter(tmp_path / name, masked_lm, seed) for seed, name in enumerate(("one", "two"))}
    (tmp_path / "store").mkdir()
    AdapterStore.create(tmp_path / "store", adapters)
    return tmp_path / "store"


def versions(replica: Replica) -> dict[str, int]:
    """The version of each adapter that a replica serves."""
    return {one["name"]: one["version"] for one in replica.adapters()}


def test_all_replicas_follow_a_change(store: Path, tmp_path: Path) -> None:
    first, second = Replica(str(store), None), Replica(str(store), None)
    assert versions(first) == versions(second) == {"one": 1, "two": 2}
    first.add("three", tmp_path / "one")
    second.replace("two", tmp_path / "one")
    first.remove("one")
    assert versions(first) == versions(second) == versions(Replica(str(store), None)) == {"two": 4, "three": 3}
    with pytest.raises(TakenNameError):
        second.add("three", tmp_path / "one")
    for change in (lambda: second.remove("one"), lambda: second.replace("one", tmp_path / "one")):
        with pytest.raises(UnknownAdapterError, match="loaded are: three, two"):
            change()


def test_adapters_of_classes_labels_and_numbers_answer_in_one_batch(
    store: Path, tmp_path: Path, masked_lm: str
) -> None:
    labels = Task("tags", "multi_label", ("text",), "tags", ("fun", "long", "sad"))
    number = Task("stars", "regression", ("text",), "stars", (), target_mean=1000.0, target_std=0.5)
    replica = Replica(str(store), None)
    for seed, task in enumerate((labels, number)):
        replica.add(task.name, write_tiny_predictor(tmp_path / task.name, masked_lm, seed, task))
    described = {one["name"]: one for one in replica.adapters()}
    assert described["tags"]["labels"] == ["fun", "long", "sad"]
    assert described["stars"]["kind"] == "regression"
    assert "labels" not in described["stars"]
    requests = [AdapterRequest(name, "a lovely film") for name in ("one", "stars", "tags", "stars")]
    together = replica.answer_batch(requests)
    assert [set(row) for row in together] == [{"text", "prediction", "scores"}, {"text", "prediction"}] * 2
    assert 900 < together[1]["prediction"] < 1100
    assert set(together[2]["prediction"]) <= {"fun", "long", "sad"}
    for request, row in zip(requests, together, strict=True):
        (alone,) = replica.answer_batch([request])
        assert alone["prediction"] == pytest.approx(row["prediction"], abs=1e-4)


def test_a_replica_starts_although_no_adapter_is_left(store: Path, tmp_path: Path) -> None:
    first = Replica(str(store), None)
    for name in ("one", "two"):
        first.remove(name)
    second = Replica(str(store), None)
    assert versions(second) == {}
    second.add("again", tmp_path / "two")
    assert versions(first) == {"again": 3}


def test_a_change_of_the_folder_changes_nothing_that_is_served(store: Path, tmp_path: Path) -> None:
    first = Replica(str(store), None)
    answer = first.answer_batch([AdapterRequest("one", "a lovely film")])
    (tmp_path / "one" / "adapter_model.safetensors").write_bytes(b"nothing")
    assert Replica(str(store), None).answer_batch([AdapterRequest("one", "a lovely film")]) == answer
    with pytest.raises(InputError, match=f"{tmp_path / 'one'}.*cannot be read as safetensors"):
        first.replace("two", tmp_path / "one")
    assert versions(first) == {"one": 1, "two": 2}


def test_a_wrong_text_costs_the_others_of_its_batch_nothing(store: Path) -> None:
    asked = [("one", "it"), ("one", ""), ("none", "it"), ("two", "it")]
    answers = Replica(str(store), None).answer_batch([AdapterRequest(*one) for one in asked])
    assert [answer["text"] for answer in (answers[0], answers[3])] == ["it", "it"]
    assert isinstance(answers[1], InputError)
    assert isinstance(answers[2], UnknownAdapterError)


def test_an_error_of_the_model_costs_the_others_of_its_batch_nothing(store: Path) -> None:
    replica = Replica(str(store), None)

    def refuse_long_rows(model: Any, args: Any, inputs: dict[str, Any]) -> None:
        if inputs["attention_mask"].shape[1] > 8:
            raise RuntimeError("out of memory")

    replica.pool.model.register_forward_pre_hook(refuse_long_rows, with_kwargs=True)
    asked = [("one", "it"), ("two", "it " * 20), ("two", "it")]
    answers = replica.answer_batch([AdapterRequest(*one) for one in asked])
    assert [answer["text"] for answer in (answers[0], answers[2])] == ["it", "it"]
    assert isinstance(answers[1], RuntimeError)
    assert answers[:1] == replica.answer_batch([AdapterRequest("one", "it")])


def test_refusals_name_no_folder_of_the_server(store: Path, masked_lm: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    replica = Replica(str(store), str(root))
    folder = write_tiny_adapter(root / "other", masked_lm, 5)
    task = json.loads((folder / "task.json").read_text())
    task["backbone"]["model"] = "/secret/place/model"
    (folder / "task.json").write_text(json.dumps(task))
    with pytest.raises(InputError) as refusal:
        replica.add("other", folder)
    assert "other was trained on another backbone than the adapters that are served" in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)
    assert "model: 'model', not" in str(refusal.value)
    assert "/secret" not in str(refusal.value)
