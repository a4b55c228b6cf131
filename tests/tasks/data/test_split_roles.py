import datasets

from sptune.tasks import load_splits
from tasks.data.data_files import OTHERS, ROWS, refusal, write_separated


def test_validation_replaces_a_test_split_without_labels(tmp_path, make_dataset):
    loaded = make_dataset(train=ROWS, validation=OTHERS, withheld_test=ROWS[:5])
    loaded["test"] = loaded.pop("withheld_test")
    name = str(tmp_path / "saved")
    loaded.save_to_disk(name)
    _, splits = load_splits(dataset=name)
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}
    assert (len(splits.train), len(splits.validation)) == (36, 4)
    assert any("withheld" in note for note in splits.notes)


def test_splits_with_other_names_can_be_chosen(tmp_path, make_dataset):
    name = str(tmp_path / "saved")
    make_dataset(train=ROWS, validation_matched=OTHERS).save_to_disk(name)
    _, splits = load_splits(dataset=name, split_names={"test": "validation_matched"})
    assert len(splits.test) == 10
    assert "no split 'exam'; it has train, validation_matched" in refusal(dataset=name, split_names={"test": "exam"})


def test_validation_replaces_a_test_file_without_labels(tmp_path):
    write_separated(tmp_path / "train.csv", ROWS)
    write_separated(tmp_path / "validation.csv", OTHERS)
    write_separated(tmp_path / "test.csv", [(text, "") for text, _ in ROWS[:5]])
    _, splits = load_splits(dataset=str(tmp_path))
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}
    assert any("withheld" in note for note in splits.notes)


def test_an_empty_split_is_not_used(tmp_path, make_dataset):
    loaded = make_dataset(train=ROWS, validation=OTHERS, withheld_test=OTHERS)
    loaded["test"] = loaded.pop("withheld_test")
    loaded.filter(lambda row: row["label"] != -1).save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(dataset=str(tmp_path / "saved"))
    assert len(splits.test) == len(OTHERS)
    assert any("[test] has no rows: it is not used" in note for note in splits.notes)


def test_validation_replaces_a_test_split_whose_numbers_are_withheld(tmp_path):
    rows = [{"text": f"sentence {index}", "label": index / 4} for index in range(20)]
    withheld = [{"text": f"another one {index}", "label": -1.0} for index in range(5)]
    splits = {"train": rows[:12], "validation": rows[12:], "test": withheld}
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_list(own) for name, own in splits.items()})
    loaded.save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(dataset=str(tmp_path / "saved"), kind="regression")
    assert [example.label for example in splits.test] == [index / 4 for index in range(12, 20)]
    assert any("[test] are withheld" in note for note in splits.notes)
