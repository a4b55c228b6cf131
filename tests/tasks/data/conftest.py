"""A training file and a dataset with declared classes."""

import datasets
import pytest

from tasks.data.data_files import ROWS, as_dicts, write_jsonl


@pytest.fixture
def train_file(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", as_dicts(ROWS))


@pytest.fixture
def make_dataset():
    """Makes a dataset with the given splits, whose label column declares its classes."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "unused", "affirmative"])}
    )

    def split(rows, withheld=False):
        label = {"bad": 0, "good": 2}
        return datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "label": [-1 if withheld else label[name] for _, name in rows]},
            features,
        )

    return lambda **splits: datasets.DatasetDict(
        {name: split(rows, name == "withheld_test") for name, rows in splits.items()}
    )
