"""Positions with prompts in front of the text, and rows rolled so that padding stands behind it."""

import pytest
import torch

from sptune.modeling.prepend.positions import (
    extend_position_ids,
    extend_rotary_tables,
    leading_padding,
    positions_restart,
    roll_rows,
)

RIGHT = torch.tensor([[1, 1, 1, 0]])
LEFT = torch.tensor([[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("positions", "mask", "expected"),
    [
        ([0, 1, 2, 3], None, [-2, -1, 0, 1, 2, 3]),
        ([0, 1, 2, 3], RIGHT, [-2, -1, 0, 1, 2, 3]),
        ([1, 1, 0, 1], LEFT, [-2, -1, 1, 1, 0, 1]),
        ([0, 1, 2, 3], LEFT, [0, 1, 0, 1, 2, 3]),
        ([7, 8, 9, 10], None, [5, 6, 7, 8, 9, 10]),
        ([1, 1, 1, 1], torch.zeros(1, 4), [-2, -1, 1, 1, 1, 1]),
    ],
    ids=["no mask", "padded right", "padded left", "positions count padding", "text begins later", "padding alone"],
)
def test_prompts_take_the_positions_before_the_first_real_token(positions, mask, expected):
    assert extend_position_ids(torch.tensor([positions]), 2, mask)[0].tolist() == expected


def test_one_row_of_positions_becomes_a_row_for_each_example_where_padding_differs():
    extended = extend_position_ids(torch.arange(4)[None], 1, torch.cat([RIGHT, LEFT]))
    assert extended.tolist() == [[-1, 0, 1, 2, 3], [1, 0, 1, 2, 3]]


def test_a_mask_that_covers_a_cache_is_read_at_its_end():
    mask = torch.tensor([[0, 0, 0, 1, 1]])
    assert extend_position_ids(torch.tensor([[3, 4]]), 1, mask).tolist() == [[2, 3, 4]]


def test_rotary_tables_stand_in_front_for_every_row():
    tables = (torch.zeros(1, 3, 4), torch.ones(1, 3, 4))
    front = (torch.full((2, 2, 4), 5.0), torch.full((2, 2, 4), 7.0))
    for extended, text, prompts in zip(extend_rotary_tables(tables, front), tables, front, strict=True):
        assert extended.shape == (2, 5, 4)
        assert torch.equal(extended[:, :2], prompts)
        assert torch.equal(extended[:, 2:], text.expand(2, -1, -1))


def test_leading_padding_counts_what_stands_before_the_text():
    assert leading_padding(torch.cat([RIGHT, LEFT, torch.ones(1, 4, dtype=torch.long)])).tolist() == [0, 2, 0]


def test_rolled_rows_begin_with_the_text_and_roll_back():
    states = torch.arange(8.0).view(2, 4, 1)
    shifts = torch.tensor([0, 2])
    rolled = roll_rows(states, shifts)
    assert rolled.flatten().tolist() == [0, 1, 2, 3, 6, 7, 4, 5]
    assert torch.equal(roll_rows(rolled, -shifts), states)
    assert roll_rows(states, None) is states


@pytest.mark.parametrize(
    ("positions", "mask", "packed"),
    [
        ([0, 1, 2, 3], None, False),
        ([0, 1, 0, 1], None, True),
        ([0, 1, 0, 1], torch.ones(1, 4), True),
        ([0, 1, 2, 0], RIGHT, False),
        ([1, 1, 0, 1], LEFT, False),
        ([0], None, False),
    ],
    ids=["one text", "two texts", "two texts and a mask", "padded right", "padded left", "one token"],
)
def test_positions_restart_in_packed_sequences_alone(positions, mask, packed):
    assert positions_restart(torch.tensor([positions]), mask) is packed


def test_without_positions_nothing_restarts():
    assert positions_restart(None, RIGHT) is False
