"""The vectors that a linear probe is trained on; runs in several processes are compared in tests/runs."""

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig

from sptune.modeling.mean_pooling import MeanPooledClassifier, MeanPooledConfig
from sptune.tasks import PaddingCollator
from sptune.training.linear_probe import LinearProbe

ROWS = [{"input_ids": [5 + row] * (1 + row % 3), "attention_mask": [1] * (1 + row % 3)} for row in range(5)]


def probe_and_data():
    shape = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = MeanPooledClassifier(MeanPooledConfig(shape, num_labels=5))
    dataset = Dataset.from_list([{**row, "labels": label} for label, row in enumerate(ROWS)])
    return model, LinearProbe(model, ["classifier"]), dataset


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_every_example_has_the_vector_and_the_label_of_its_row(batch_size):
    model, probe, dataset = probe_and_data()
    pooled = probe.pool(dataset, PaddingCollator(0, left=False), batch_size, torch.device("cpu"))[:]
    with torch.no_grad():
        alone = [model.pool(**{name: torch.tensor([value]) for name, value in row.items()}) for row in ROWS]
    torch.testing.assert_close(pooled["pooled"], torch.cat(alone))
    assert pooled["labels"].tolist() == [0, 1, 2, 3, 4]


def test_texts_of_like_length_share_a_batch():
    widths = []

    def collator(rows):
        batch = PaddingCollator(0, left=False)(rows)
        widths.append(batch["input_ids"].shape[1])
        return batch

    _, probe, dataset = probe_and_data()
    probe.pool(dataset, collator, 2, torch.device("cpu"))
    assert widths == [1, 2, 3]
