import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sptune.tasks.token_dataset import token_dataset


def chunks(number: int) -> Iterator[dict[str, list[Any]]]:
    for chunk in range(number):
        rows = range(10 * chunk, 10 * chunk + 10)
        yield {"input_ids": [list(range(row)) for row in rows], "labels": [row / 2 for row in rows]}


def file_of(dataset: Dataset) -> Path:
    return Path(dataset.cache_files[0]["filename"])


@pytest.mark.parametrize("number", [1, 4])
def test_a_small_dataset_is_in_memory(number: int) -> None:
    dataset = token_dataset(chunks(number))
    assert dataset.cache_files == []
    assert dataset["labels"][:] == [row / 2 for row in range(10 * number)]


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_large_dataset_is_the_same_in_a_file(limit: int) -> None:
    small, large = token_dataset(chunks(6)), token_dataset(chunks(6), max_in_memory=limit)
    assert file_of(large).is_file()
    assert large.features == small.features
    assert large[:] == small[:]
    assert large.select([59, 0])[:] == small.select([59, 0])[:]


def test_the_file_is_deleted_with_the_last_dataset_that_uses_it() -> None:
    dataset = token_dataset(chunks(6), max_in_memory=0)
    file = file_of(dataset)
    views = [dataset.select([3, 4]), copy.deepcopy(dataset), dataset.with_format("torch")]
    expected = views[0][:]
    del dataset
    gc.collect()
    assert pickle.loads(pickle.dumps(views[0]))[:] == expected
    views.clear()
    gc.collect()
    assert not file.parent.exists()


def test_nothing_is_left_of_a_dataset_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def failing() -> Iterator[dict[str, list[Any]]]:
        yield from chunks(2)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        token_dataset(failing(), max_in_memory=0)
    assert list(tmp_path.iterdir()) == []
