"""The tokens of datasets, by which cached states are found."""

from datasets import Dataset

from sptune.training.token_table import TokenTable


def test_the_table_knows_padded_examples_and_token_types():
    rows = [
        {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "token_type_ids": [0, 1, 0, 0]},
        {"input_ids": [0, 7, 8, 9], "attention_mask": [0, 1, 1, 1], "token_type_ids": [0, 0, 0, 1]},
    ]
    for dataset in (rows, Dataset.from_list(rows), Dataset.from_list(rows).with_format("torch")):
        table = TokenTable.of([dataset, rows[:1]])
        assert table.tokens.tolist() == [5, 6, 7, 8, 9, 5, 6]
        assert table.types.tolist() == [0, 1, 0, 0, 1, 0, 1]
        assert (table.starts.tolist(), table.lengths.tolist()) == ([0, 2, 5], [2, 3, 2])
