import json
from pathlib import Path

import pytest
import yaml

from defaults import development_data
from local_study import SMOLLM2_SIZES, SPLIT_OFF, local_task, main, small_task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in ("mr", "sst2"):
        (tmp_path / task).mkdir()
        rows = [json.dumps({"text": f"{task} {number}", "label": "positive"}) + "\n" for number in range(4000)]
        (tmp_path / task / "train.jsonl").write_text("".join(rows[:3500]), encoding="utf-8")
        if task == "sst2":
            (tmp_path / task / "test.jsonl").write_text("".join(rows[3500:]), encoding="utf-8")
    return tmp_path


def lines(path: str | Path) -> set[str]:
    return set(Path(path).read_text(encoding="utf-8").splitlines())


def test_defaults_are_chosen_without_the_test_data_that_studies_split_off(data: Path) -> None:
    made = local_task("mr", True, data, data / "made")
    development = development_data(data, "mr", data / "work") / "mr" / "train.jsonl"
    assert len(lines(made["test_file"])) == SPLIT_OFF["mr"][1]
    assert (
        lines(development) == lines(made["train_file"]) == lines(data / "mr" / "train.jsonl") - lines(made["test_file"])
    )
    assert development_data(data, "sst2", data / "work") == data


def test_small_tasks_have_splits_without_overlap(data: Path) -> None:
    for task in ("mr", "sst2"):
        made = small_task(task, data, data / "made")
        parts = [lines(made[f"{name}_file"]) for name in ("train", "validation", "test")]
        assert len(parts[1]) == SMOLLM2_SIZES["validation"]
        assert len(parts[2]) == min(SMOLLM2_SIZES["test"], 500 if task == "sst2" else 1000)
        assert len(set.union(*parts)) == sum(map(len, parts))


def test_a_task_may_have_another_name_in_the_study(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = {"options": {"model": "MiniLM"}, "tasks": {"reviews-500": {"task": "sst2", "few_shot": 500}}}
    (data / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    arguments = ["local_study.py", str(data / "study.yaml"), "--data", str(data), "--output", str(data / "made")]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    task = yaml.safe_load((data / "made" / "study.yaml").read_text(encoding="utf-8"))["tasks"]["reviews-500"]
    assert task["test_file"] == str((data / "sst2" / "test.jsonl").resolve())
    assert task["few_shot"] == 500
