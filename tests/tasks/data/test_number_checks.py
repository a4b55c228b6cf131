"""Numbers to predict: how they may be written, and what is refused."""

from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits, read_labeled
from tasks.data.data_files import write_jsonl, write_separated

ROWS = [(f"text {index} of many", index / 4) for index in range(40)]


def load(path, **options):
    return load_splits(train_file=path, kind="regression", **options)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load(path, **options)
    return str(caught.value)


def numbers(splits):
    return sorted(example.label for split in (splits.train, splits.validation, splits.test) for example in split)


def test_all_formats_hold_the_same_numbers(tmp_path):
    table = pyarrow.table({"text": [text for text, _ in ROWS], "label": [Decimal(f"{n:.2f}") for _, n in ROWS]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    paths = [
        write_jsonl(tmp_path / "train.jsonl", [{"text": text, "label": number} for text, number in ROWS]),
        write_separated(tmp_path / "train.csv", ROWS),
        tmp_path / "train.parquet",
    ]
    for path in paths:
        labels, splits = load(path)
        assert labels == ()
        assert numbers(splits) == [number for _, number in ROWS]
        assert "split off, at random" in splits.notes[0]


@pytest.mark.parametrize("text", ["3", " -3.50 ", "+.5", "1e-3", "2.5E+02", "7."])
def test_numbers_may_be_written_in_many_ways(tmp_path, text):
    path = write_separated(tmp_path / "test.csv", [("x", text)])
    assert [example.label for example in read_labeled(path, kind="regression")] == [float(text)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no number. Write one, or remove the line."),
        ("n/a", "not a number. Write digits, such as 3.5, without a unit"),
        ("5 stars", "not a number"),
        ("3,5", "not a number. Write a decimal point (3.5) and no commas"),
        ("1_000", "not a number"),
        ("0x10", "not a number"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("1e999", "not a finite number"),
        ("٣", "not a number"),
    ],
)
def test_a_text_that_is_no_number_is_refused_with_its_place(tmp_path, text, message):
    path = write_separated(tmp_path / "train.csv", [*ROWS, ("one more", text)])
    assert refusal(path).startswith(f"{path}:42, field 'label', value {text!r}: {message}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no number"),
        (True, "a truth value, not a number"),
        ([1.0], "a list, not a number"),
        (float("nan"), "not a finite number"),
        (float("inf"), "not a finite number"),
        (10**400, "not a finite number"),
    ],
)
def test_a_value_that_is_no_number_is_refused_with_its_place(tmp_path, value, message):
    rows = [{"text": text, "label": number} for text, number in [*ROWS, ("one more", value)]]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    found = refusal(path)
    assert found.startswith(f"{path}:41, field 'label', value ")
    assert message in found


@pytest.mark.parametrize(
    ("values", "message"),
    [([3.0] * 40, "all 40 examples have this one number"), ([1e200 * one for one in range(40)], "too large")],
)
def test_numbers_that_cannot_be_standardized_are_refused(tmp_path, values, message):
    rows = [(text, value) for (text, _), value in zip(ROWS, values, strict=True)]
    validation = write_separated(tmp_path / "validation.csv", [("x", 1), ("y", 2)])
    path = write_separated(tmp_path / "train.csv", rows)
    assert message in refusal(
        path, validation_file=validation, test_file=write_separated(tmp_path / "t.csv", [("z", 1)])
    )


def test_a_test_file_of_one_number_is_noted(tmp_path):
    path = write_separated(tmp_path / "train.csv", ROWS)
    test = write_separated(tmp_path / "test.csv", [("x", 2), ("y", "2.0")])
    assert any("All 2 test examples have the number 2.0:" in note for note in load(path, test_file=test)[1].notes)


def test_few_shot_draws_numbers_at_random(tmp_path):
    splits = load(write_separated(tmp_path / "train.csv", ROWS), few_shot=10)[1]
    assert len(splits.train) == 10
    assert "drawn at random" in splits.notes[0]


def test_scores_in_a_classification_say_how_to_predict_them(tmp_path):
    path = write_separated(tmp_path / "train.csv", [(f"text {index}", index / 7) for index in range(90)])
    with pytest.raises(InputError, match="Predict it \\(task_kind='regression'\\)"):
        load_splits(train_file=path)


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="kind='ranking' is not allowed; choose one of verbalizer, classifier"):
        load_splits(train_file=tmp_path / "train.csv", kind="ranking")


def test_numbers_of_which_equal_ones_are_drawn_are_refused(tmp_path):
    rows = [{"text": f"text {number}", "label": 0 if number else 5} for number in range(100)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(InputError, match=r"value 0: all 4 examples that were drawn for training have this one number"):
        load(path, few_shot=4)
