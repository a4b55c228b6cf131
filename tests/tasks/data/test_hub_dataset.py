import json

import datasets
import pytest

from sptune.tasks import load_splits
from tasks.data.data_files import OTHERS, ROWS, as_dicts, refusal, texts, write_jsonl, write_separated


def test_a_folder_written_by_save_to_disk(tmp_path, make_dataset):
    make_dataset(train=ROWS, test=OTHERS).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(dataset=str(tmp_path / "saved"))
    assert labels == ("negative", "affirmative")
    assert len(splits.test) == 10
    assert splits.test[3].where.endswith("saved[test][3]")
    assert splits.test[3].fields["text"] == "another sentence 3"


def test_a_saved_dataset_without_splits_is_split(tmp_path, make_dataset):
    make_dataset(train=ROWS)["train"].save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(dataset=str(tmp_path / "saved"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (28, 4, 8)


def test_a_local_folder_of_files(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", as_dicts(ROWS))
    write_jsonl(folder / "test.jsonl", as_dicts(OTHERS))
    labels, splits = load_splits(dataset=str(folder))
    assert labels == ("bad", "good")
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}


def test_numbers_in_a_folder_of_files_are_read_as_text(tmp_path):
    write_separated(tmp_path / "train.csv", [(str(index), "ab"[index % 2]) for index in range(40)])
    _, splits = load_splits(dataset=str(tmp_path))
    assert texts(splits) == {str(index) for index in range(40)}


def test_the_current_folder_can_be_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_separated(tmp_path / "train.csv", [("", "good"), *ROWS])
    assert refusal(dataset=".").startswith("train.csv:2, field 'text'")


def test_a_split_may_consist_of_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        path = tmp_path / "kept" / "data" / f"train-0000{number}-of-00002.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_separated(path, ROWS[number::2])
    _, splits = load_splits(dataset="kept")
    assert texts(splits) == {text for text, _ in ROWS}
    write_separated(path, [("", "good"), *ROWS[1::2]])
    assert refusal(dataset="kept").startswith("kept/data/train-00001-of-00002.csv:2, field 'text', value ''")


def test_an_unused_file_of_a_folder_is_noted(tmp_path):
    write_separated(tmp_path / "train.csv", ROWS)
    assert not any("not used" in note for note in load_splits(dataset=str(tmp_path))[1].notes)
    write_jsonl(tmp_path / "more.jsonl", as_dicts(OTHERS))
    notes = load_splits(dataset=str(tmp_path))[1].notes
    assert notes[0].startswith(f"{tmp_path / 'more.jsonl'}: not used.")


def test_a_folder_with_configurations_and_declared_classes(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: one.csv}\n- {config_name: two, data_files: two.jsonl}\n"
        "dataset_info:\n- config_name: two\n  features:\n  - {name: text, dtype: string}\n"
        "  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}\n---\n"
    )
    write_separated(tmp_path / "one.csv", ROWS)
    write_jsonl(tmp_path / "two.jsonl", [{"text": text, "label": int(label == "good")} for text, label in ROWS])
    for config in ("one", "two"):
        labels, splits = load_splits(dataset=str(tmp_path), dataset_config=config)
        assert labels == ("bad", "good")
        assert {(example.fields["text"], example.label) for example in splits.train} <= set(ROWS)
    assert "Name one of its configurations" in refusal(dataset=str(tmp_path), dataset_config="three")


def test_a_configuration_is_refused_if_there_are_none(tmp_path, make_dataset, train_file):
    make_dataset(train=ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in (str(tmp_path / "saved"), str(train_file)):
        assert "has no configurations" in refusal(dataset=name, dataset_config="plain")


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow", "jax"])
def test_the_format_of_a_saved_dataset_does_not_matter(tmp_path, make_dataset, kind):
    saved = make_dataset(train=ROWS, test=OTHERS)
    if kind == "jax":  # not installed, perhaps, so written as if it had been
        saved.save_to_disk(str(tmp_path / "saved"))
        for state in (tmp_path / "saved").glob("*/state.json"):
            state.write_text(json.dumps(json.loads(state.read_text()) | {"_format_type": "jax"}))
    else:
        saved.with_format(kind, columns=["label"]).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(dataset=str(tmp_path / "saved"))
    assert labels == ("negative", "affirmative")
    assert texts(splits) == {text for text, _ in ROWS + OTHERS}


def test_a_bad_row_of_a_dataset_is_named_by_its_index(tmp_path, make_dataset):
    rows = [*ROWS[:4], (" ", "bad"), *ROWS[4:]]
    name = str(tmp_path / "saved")
    make_dataset(train=rows).save_to_disk(name)
    assert f"{name}[train][4], field 'text', value ' ': empty text" in refusal(dataset=name)
    assert "no column 'review'; found 'text', 'label'" in refusal(dataset=name, text_columns=("review",))


def test_a_hub_dataset_without_a_network_has_a_remedy(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(dataset="nobody/has-this-data", dataset_config="plain")
    assert message.startswith("The dataset 'nobody/has-this-data' with configuration 'plain' cannot be loaded:")
    assert "Without a network, give a local folder" in message


def test_a_folder_without_data_has_a_remedy(tmp_path):
    assert "named after their split" in refusal(dataset=str(tmp_path))


def test_a_saved_split_without_a_file_counts_as_empty(tmp_path, make_dataset):
    loaded = make_dataset(train=ROWS, validation=OTHERS)
    loaded["test"] = loaded["train"].select([])
    loaded.save_to_disk(str(tmp_path / "saved"))
    state = tmp_path / "saved" / "test" / "state.json"
    about = json.loads(state.read_text())
    about["_data_files"] = []
    state.write_text(json.dumps(about))
    _, splits = load_splits(dataset=str(tmp_path / "saved"))
    assert any("[test] has no rows: it is not used" in note for note in splits.notes)
