import pytest

from sptune.tasks import load_splits
from tasks.data.data_files import ROWS, as_dicts, refusal, write_jsonl, write_parquet, write_separated


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["b", "a", "C"], ("C", "a", "b")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([1.0, 2.0, 0.5], ("0.5", "1", "2")),
        ([True, False, True], ("false", "true")),
        ([" yes ", "yes", "no"], ("no", "yes")),
    ],
)
def test_numbers_are_ordered_as_numbers_and_names_by_the_alphabet(tmp_path, given, expected):
    rows = [{"text": f"text {index}", "label": given[index % 3]} for index in range(60)]
    assert load_splits(train_file=write_jsonl(tmp_path / "train.jsonl", rows))[0] == expected


def test_the_order_of_labels_can_be_given(train_file):
    assert load_splits(train_file=train_file, labels=["good", "bad"])[0] == ("good", "bad")
    message = refusal(train_file=train_file, labels=["good", "fine"])
    assert "train.jsonl:1, field 'label', value 'bad'" in message
    assert "'good', 'fine'" in message


def test_a_given_class_without_examples_is_noted(train_file):
    _, splits = load_splits(train_file=train_file, labels=["good", "bad", "ugly"])
    assert any("'ugly' has no examples" in note for note in splits.notes)


def test_classes_that_differ_only_in_case_or_spaces_are_refused(tmp_path):
    rows = [{"text": f"text {index}", "label": ("New York", "Rome")[index % 2]} for index in range(40)]
    rows[6]["label"] = "new  york"
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert f"{file}:7, field 'label', value 'new  york'" in message
    assert "there is also a class 'New York' with 19 examples" in message
    labels, _ = load_splits(train_file=file, labels=["New York", "Rome", "new  york"])
    assert labels == ("New York", "Rome", "new  york")


def test_a_rare_class_is_noted(tmp_path):
    rows = [{"text": f"text {index}", "label": ("a", "b")[index % 2]} for index in range(200)]
    rows[6]["label"] = "c"
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert [note for note in splits.notes if note.endswith("hardly be learned.")] == [
        f"The class 'c' has 1 of the 200 examples in {tmp_path / 'train.jsonl'}: it can hardly be learned."
    ]
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "few.jsonl", as_dicts(ROWS)))
    assert not any(note.endswith("hardly be learned.") for note in splits.notes)


def scores(tmp_path, labels, extension=".csv"):
    rows = [(f"text {index}", label) for index, label in enumerate(labels)]
    path = tmp_path / f"train{extension}"
    if extension == ".parquet":
        return write_parquet(path, as_dicts(rows))
    return write_jsonl(path, as_dicts(rows)) if extension == ".jsonl" else write_separated(path, rows)


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_scores_is_refused(tmp_path, extension):
    values = [index * 37 % 501 / 100 for index in range(1200)]
    path = scores(tmp_path, values, extension)
    test = write_separated(tmp_path / "test.csv", [("x", "9.87")])
    message = refusal(train_file=path, test_file=test)
    assert message.startswith(f"{path}, field 'label': 501 different labels in 1200 examples, 495 of them fractional")
    assert "looks like a number to predict" in message
    names = sorted({str(value) if extension == ".csv" else f"{value:g}" for value in values})
    assert len(load_splits(train_file=path, labels=names)[0]) == 501


@pytest.mark.parametrize(
    "labels",
    [
        [f"{index % 60 / 7:.2f}".replace(".", ",") for index in range(300)],  # commas as decimal points
        [f"{index % 60 / 7:.1f}%" for index in range(300)],
        [f"{index % 60 + 1}e-3" for index in range(300)],
        [*(f"{index % 60 / 7:.2f}" for index in range(300)), "n/a", "n/a"],
        [f"{index / 7:.2f}" for index in range(14)],  # few, but nearly one an example
    ],
)
def test_scores_are_recognized_in_every_notation(tmp_path, labels):
    assert "looks like a number to predict" in refusal(train_file=scores(tmp_path, labels))


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["1.1", "1.10", "2.5"], False),  # sections
        (["3.9", "3.10", "3.11", "3.12"], False),  # versions
        ([f"{index / 2:g}" for index in range(21)], False),  # half stars from 0 to 10
        (list(map(str, range(1, 11))), False),
        (list(map(str, range(101))), True),
        ([f"v{index}" for index in range(101)], False),
    ],
)
def test_few_fractions_and_whole_numbers_are_classes(tmp_path, names, note):
    labels, splits = load_splits(train_file=scores(tmp_path, names * (600 // len(names))))
    assert set(labels) == set(names)
    assert any("whole numbers" in one and "order is not learned" in one for one in splits.notes) == note


def test_one_class_only_is_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", "good") for i in range(9)]))
    assert f"{path}, field 'label', value 'good': all 9 examples have this one label" in refusal(train_file=path)


def test_labels_that_are_numbers_to_predict_are_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", i / 7) for i in range(90)]))
    assert "90 different labels in 90 examples" in refusal(train_file=path)
