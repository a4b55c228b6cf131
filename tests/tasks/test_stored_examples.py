import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sptune.tasks import Example, load_splits
from sptune.tasks.stored_examples import StoredExamples

TEXTS = ["short", "ein längerer Satz mit Umlauten", "", "a\nb\0c 🙂" * 50]


@pytest.fixture
def examples() -> list[Example]:
    labels = ["good", None, ("a", "b"), 2.5]
    return [
        Example({"text": text}, label, f"train.jsonl:{line}")
        for line, (text, label) in enumerate(zip(TEXTS, labels, strict=True), start=1)
    ]


def test_stored_examples_are_the_sequence_that_was_written(examples: list[Example]) -> None:
    stored = StoredExamples.write(one for one in examples)
    assert len(stored) == 4
    assert list(stored) == examples
    assert [stored[place] for place in (0, 3, -1)] == [examples[place] for place in (0, 3, -1)]
    assert stored[1:3] == examples[1:3]
    assert stored[::-2] == examples[::-2]
    assert stored == examples
    assert stored != examples[:3]
    assert stored != [*examples[:3], examples[0]]
    with pytest.raises(IndexError):
        stored[4]


def test_none_can_be_stored() -> None:
    stored: StoredExamples[Example] = StoredExamples.write(())
    assert (len(stored), list(stored), stored[:]) == (0, [], [])


def test_a_selection_has_its_own_order_and_can_be_selected_from(examples: list[Example]) -> None:
    some = StoredExamples.write(examples).select([3, 0, 2])
    assert some == [examples[3], examples[0], examples[2]]
    assert some.select(np.array([2, 1])) == [examples[2], examples[0]]
    assert some.joined(some.select([1])) == [examples[3], examples[0], examples[2], examples[0]]
    assert some.select([]) == []


def test_threads_read_at_the_same_time() -> None:
    texts = [str(number) * (number % 97) for number in range(2000)]
    stored = StoredExamples.write(texts)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(stored.__getitem__, range(2000)))
    assert read == texts


def test_data_take_little_memory(tmp_path: Path) -> None:
    rows = [
        {"text": f"some words of a text, number {number} " * 10, "label": "ab"[number % 2]} for number in range(5000)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    del rows
    load_splits(train_file=path)  # imports
    tracemalloc.start()
    try:
        _, splits = load_splits(train_file=path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 5000
    # The texts alone are 1.9 MB.
    assert kept < 5000 * 50
    assert peak < 5000 * 150


@pytest.mark.parametrize("part", ["examples", "tokens"])
def test_a_full_disk_is_named_with_the_remedy(part: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    code = {
        "examples": "StoredExamples.write('word' * 1000 for _ in range(1000))",
        "tokens": "token_dataset(({'input_ids': [[1] * 1000] * 10} for _ in range(1000)), max_in_memory=0)",
    }
    script = (
        "import signal; from sptune.tasks.stored_examples import StoredExamples; "
        "from sptune.tasks.token_dataset import token_dataset; "
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {code[part]}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    assert "File too large; set TMPDIR to a folder with more room" in done.stderr
    assert str(tmp_path) in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
