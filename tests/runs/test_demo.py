"""The demonstration's data; the demonstration itself is `make demo`."""

import json
from collections import Counter
from pathlib import Path

import pytest

from sptune.errors import InputError
from sptune.runs.demo import run_demo, write_reviews


def test_the_demo_replaces_no_data_of_others(tmp_path: Path) -> None:
    mine = tmp_path / "data" / "train.jsonl"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"train\.jsonl: exists already"):
        run_demo(tmp_path)
    assert mine.read_text() == "mine"


def test_reviews_are_disjoint_balanced_and_the_same_every_time(tmp_path: Path) -> None:
    files = write_reviews(tmp_path / "a", 300, seed=1)
    texts: dict[str, set[str]] = {}
    for name, path in files.items():
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
        counts = Counter(row["label"] for row in rows)
        assert set(counts) == {"negative", "positive"}
        assert min(counts.values()) > 0.4 * len(rows)
        texts[name] = {row["text"] for row in rows}
        assert len(texts[name]) == len(rows)
    assert len(texts["train_file"]) == 300
    assert len(texts["test_file"]) >= 1000
    assert not texts["train_file"] & texts["test_file"]
    assert not texts["train_file"] & texts["validation_file"]
    again = write_reviews(tmp_path / "b", 300, seed=1)
    assert [Path(path).read_text() for path in files.values()] == [Path(path).read_text() for path in again.values()]
