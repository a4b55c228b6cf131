import logging

import pytest

from sptune import tasks
from sptune.errors import InputError
from sptune.tasks import load_splits, read_labeled, read_unlabeled
from tasks.data.data_files import as_dicts, write_jsonl


def test_an_example_knows_its_line(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text('text\n"one\nover two lines"\n\nthree\n', encoding="utf-8")
    assert [(example.fields["text"], example.where) for example in read_unlabeled(path)] == [
        ("one\nover two lines", f"{path}:2"),
        ("three", f"{path}:5"),
    ]


def test_notes_on_a_file_are_logged_in_evaluation_and_prediction(tmp_path, caplog):
    path = tmp_path / "new.csv"
    path.write_text("sep=;\ntext;label\nfine;good\n")
    with caplog.at_level(logging.WARNING):
        read_labeled(path, labels=("good", "bad"))
        read_unlabeled(path)
    assert [record.getMessage().count("separated by ';'") for record in caplog.records] == [1, 1]


def test_a_test_file_of_one_class_is_noted(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "good")]))
    _, splits = load_splits(train_file=train_file, test_file=test)
    assert any("of the class 'good'" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either files"),
        ({"train_file": "train.jsonl", "dataset": "x"}, "Give either files"),
        ({"dataset": "x", "test_file": "test.jsonl"}, "go with train_file"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"train_file": "train.jsonl", "text_columns": ()}, "at least one"),
        ({"train_file": "train.jsonl", "text_columns": ("label",)}, "both the text and the label"),
        ({"train_file": "train.jsonl", "labels": ["good"]}, "two different classes"),
        ({"train_file": "train.jsonl", "test_file": "./train.jsonl"}, "same file"),
        ({"train_file": "folder"}, "is a folder"),
        ({"train_file": "train.xlsx"}, r"'\.xlsx' are not supported.*\.jsonl"),
        ({"train_file": "train.jsonl", "few_shot": 100}, "few_shot=100"),
    ],
)
def test_invalid_options_are_refused(tmp_path, monkeypatch, train_file, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(InputError, match=message):
        load_splits(**options)


def test_unlabeled_texts_are_checked(tmp_path):
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "fine"}, {"text": ""}])
    with pytest.raises(InputError, match=f"{path}:2, field 'text', value ''"):
        read_unlabeled(path)


def test_the_old_spellings_of_the_readers_still_work(tmp_path):
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "fine", "label": "a"}])
    with pytest.warns(FutureWarning, match="read_labeled"):
        assert tasks.read_labelled(path, labels=("a", "b")) == read_labeled(path, labels=("a", "b"))
    with pytest.warns(FutureWarning, match="read_unlabeled"):
        assert tasks.read_unlabelled(path) == read_unlabeled(path)


def test_the_old_names_of_arguments_still_work(train_file):
    with pytest.warns(FutureWarning, match="data= was renamed to dataset="):
        old = load_splits(data=str(train_file))
    assert old == load_splits(dataset=str(train_file))
