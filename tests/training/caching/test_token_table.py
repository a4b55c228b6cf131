"""The tokens of datasets, by which cached states are found."""

import torch
from datasets import Dataset

from sptune.training.caching.token_table import PART, TokenTable


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


def test_a_dataset_without_token_types_has_zeros_where_another_has_some():
    plain, typed = [{"input_ids": [5, 6, 7]}], [{"input_ids": [5, 6], "token_type_ids": [0, 1]}]
    for datasets in ((plain, typed), (typed, plain)):
        table = TokenTable.of(datasets)
        assert len(table.types) == len(table.tokens)
        assert table.find(torch.tensor([[5, 6, 7]]), None, None).rows.tolist() == [datasets.index(plain)]
        assert table.find(torch.tensor([[5, 6]]), None, torch.tensor([[0, 1]])).rows.tolist() == [datasets.index(typed)]
        assert table.find(torch.tensor([[5, 6]]), None, None) is None


def test_texts_are_found_by_their_tokens_and_types():
    noise = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(PART + 200):
        length = int(torch.randint(1, 6, (), generator=noise))
        tokens, types = torch.randint(1, 4, (length,), generator=noise), torch.randint(0, 2, (length,), generator=noise)
        rows.append({"input_ids": tokens.tolist(), "token_type_ids": types.tolist()})
    table = TokenTable.of([rows])
    for places in torch.arange(len(rows)).split(300):
        ids, mask, types = torch.zeros(3, len(places), 6, dtype=torch.long).unbind()
        for line, place in enumerate(places.tolist()):
            length = len(rows[place]["input_ids"])
            left = line % (7 - length)  # padding on both sides, with arbitrary tokens
            ids[line] = torch.randint(1, 4, (6,), generator=noise)
            ids[line, left : left + length] = torch.tensor(rows[place]["input_ids"])
            types[line, left : left + length] = torch.tensor(rows[place]["token_type_ids"])
            mask[line, left : left + length] = 1
        found = table.find(ids, mask, types)
        assert [rows[row] for row in found.rows.tolist()] == [rows[place] for place in places.tolist()]
        assert torch.equal(table.tokens[found.index][found.mask], ids[mask.bool()])


def test_texts_that_the_table_lacks_are_not_found():
    table = TokenTable.of([[{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6]}]])
    assert table.find(torch.tensor([[5, 6, 7]]), None, None) is not None
    for other in ([5, 6, 8], [5], [6, 5], [5, 6, 7, 8], [5, 6, 7, 0]):
        assert table.find(torch.tensor([other]), None, None) is None
    assert table.find(torch.tensor([[5, 6, 7]]), None, torch.tensor([[0, 0, 1]])) is None
    assert table.find(torch.tensor([[5, 6, 7], [5, 6, 9]]), None, None) is None, "one of two"
    assert table.find(torch.zeros(1, 2, 3, dtype=torch.long), None, None) is None
    assert table.find(torch.tensor([[5, 6]]), torch.zeros(1, 2), None) is None, "no text at all"
