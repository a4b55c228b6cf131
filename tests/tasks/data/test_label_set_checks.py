"""Examples with several labels: lists and texts, what is refused, and how the splits are drawn."""

import json
from collections import Counter

import datasets
import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits, read_labeled
from tasks.data.data_files import write_jsonl, write_parquet, write_separated

SETS = [["fun"], ["fun", "sad"], [], ["sad", "long", "fun"], ["long"]]


def rows(sets=SETS, count=50):
    return [{"text": f"text {index} of many", "label": sets[index % len(sets)]} for index in range(count)]


def load(path, **options):
    return load_splits(train_file=path, kind="multi_label", **options)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        load(path, **options)
    return str(caught.value)


def labels_of(splits):
    return sorted((example.fields["text"], example.label) for split in (splits.train, splits.validation, splits.test)
                  for example in split)  # fmt: skip


def test_all_formats_hold_the_same_labels(tmp_path):
    joined = [(row["text"], "|".join(row["label"])) for row in rows()]
    spaced = [(text, label.replace("|", " ; ")) for text, label in joined]
    loaded = [
        load(write_jsonl(tmp_path / "lists.jsonl", rows())),
        load(write_jsonl(tmp_path / "texts.jsonl", [{"text": text, "label": label} for text, label in joined])),
        load(write_parquet(tmp_path / "lists.parquet", rows())),
        load(write_separated(tmp_path / "bars.csv", joined)),
        load(write_separated(tmp_path / "semicolons.tsv", spaced, "\t"), label_separator=";"),
    ]
    for labels, splits in loaded:
        assert labels == ("fun", "long", "sad")
        assert labels_of(splits) == labels_of(loaded[0][1])
    assert Counter(len(label) for _, label in labels_of(loaded[0][1])) == {0: 10, 1: 20, 2: 10, 3: 10}


def test_classes_that_a_dataset_declares_keep_their_order(tmp_path):
    declared = datasets.ClassLabel(names=["sad", "unused", "fun"])
    features = datasets.Features({"text": datasets.Value("string"), "label": [declared]})
    own = [{"text": f"text {index}", "label": [[0, 2], [2], []][index % 3]} for index in range(30)]
    datasets.Dataset.from_list(own, features).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(dataset=str(tmp_path / "saved"), kind="multi_label")
    assert labels == ("sad", "fun")
    assert {example.label for example in splits.train} == {("sad", "fun"), ("fun",), ()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "nothing, not a list of labels"),
        (float("nan"), "nothing, not a list of labels"),
        ({"fun": 1}, "an object, not a list of labels"),
        (["fun", ""], "an empty label among others"),
        (["fun", None], "an empty label among others"),
        ("fun||sad", "an empty label among others. Name a label on both sides of each '|'"),
        (["fun", "sad", "fun"], "the label 'fun' more than once"),
        ([0, 1, 0], "If these are 0 and 1 for each label, write the names of the labels that an example has."),
        ([["fun"]], "a list among the labels. Write the names or numbers of the labels in one list"),
        ([{"fun": 1}, "sad"], "an object among the labels"),
        ("['fun', 'sad']", "a list written as text. Write 'a|b' (nothing for an example without labels)"),
        (' ["fun"] ', "a list written as text"),
        ("[]", "a list written as text"),
        ("[1, 2]", "a list written as text"),
        (["a\ud800", "fun"], "half a surrogate pair"),
    ],
)
def test_what_is_no_list_of_labels_is_refused_with_its_place(tmp_path, value, message):
    path = write_jsonl(tmp_path / "train.jsonl", [*rows(), {"text": "one more", "label": value}])
    found = refusal(path)
    assert found.startswith(f"{path}:51, field 'label', value ")
    assert message in found


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ([[]], {}, "all 50 examples together have no label"),
        ([["fun"], []], {}, "all 50 examples together have only the label 'fun'"),
        ([["fun"], ["Fun", "sad"]], {}, "Use one spelling"),
        (["fun;sad", "fun", "sad;long"], {}, "';' seems to stand between labels. Say so (label_separator=';')"),
        ([["fun"], ["sad"]], {"labels": ["fun", "long"]}, "this label is not one of 'fun', 'long'"),
        ([["fun"], ["sad"]], {"labels": ["fun"]}, "at least two different classes"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(tmp_path, sets, options, message):
    assert message in refusal(write_jsonl(tmp_path / "train.jsonl", rows(sets)), **options)


def test_identifiers_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", rows([[f"id{index}", f"other{index}"] for index in range(60)], 60))
    assert "120 different labels in 60 examples, such as 'id0'. They look like identifiers" in refusal(path)


def test_labels_with_a_semicolon_are_taken_if_the_separator_is_named(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", rows(["fun;sad", "fun", "sad;long"]))
    assert load(path, label_separator="|")[0] == ("fun", "fun;sad", "sad;long")


def test_unusual_labels_are_noted(tmp_path):
    single = write_jsonl(tmp_path / "single.jsonl", rows([["fun"], ["sad"], []]))
    notes = load(single, labels=["fun", "sad", "long"])[1].notes
    assert any("no example has more than one label" in note and "task_kind='classifier'" in note for note in notes)
    assert any("'long' has no examples" in note for note in notes)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": ["fun"]}, {"text": "y", "label": ["fun"]}])
    assert any("All 2 test examples have the labels ['fun']" in note for note in load(single, test_file=test)[1].notes)


def test_labels_of_other_files_must_be_among_those_of_the_training_data(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", rows())
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": ["fun", "dull"]}, {"text": "y", "label": []}])
    found = refusal(train, test_file=test)
    assert f"{test}:1, field 'label', value 'dull': this label does not occur in the training data" in found
    with pytest.raises(InputError, match="value 'dull': this label is not one of 'fun', 'sad'"):
        read_labeled(test, labels=("fun", "sad"), kind="multi_label")


def test_rare_labels_are_in_all_splits(tmp_path):
    # Each combination of labels occurs once or twice, which is too seldom to draw in proportion to combinations.
    sets = [[name for bit, name in enumerate("abcdef") if index >> bit & 1] + ["rare"] * (index % 10 == 0)
            for index in range(100)]  # fmt: skip
    path = write_jsonl(tmp_path / "train.jsonl", rows(sets, 100))
    for seed in range(3):
        splits = load(path, seed=seed)[1]
        counts = [sum("rare" in example.label for example in split) for split in (splits.validation, splits.test)]
        assert counts == [1, 2]
    assert "in proportion to the rarest label of each" in splits.notes[0]
    drawn = load(path, few_shot=20)[1].train
    assert len(drawn) == 20
    assert sum("rare" in example.label for example in drawn) == 2
    assert "of 8 groups by rarest label" in refusal(path, few_shot=2)


def test_a_classifier_says_how_to_learn_several_labels(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", rows())
    with pytest.raises(InputError, match=r"a list, not one class\. .*add task_kind='multi_label'"):
        load_splits(train_file=path)


def test_labels_may_be_numbers(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": [i % 3, 10 + i % 2]}) + "\n" for i in range(30)))
    assert load(path)[0] == ("0", "1", "2", "10", "11")
