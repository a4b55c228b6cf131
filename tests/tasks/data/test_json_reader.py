import json

import pytest

from sptune.tasks import load_splits, read_labeled, read_unlabeled
from tasks.data.data_files import ROWS, as_dicts, refusal, refusal_of, texts


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_json_list_is_read_entry_by_entry(tmp_path, indent, name):
    path = tmp_path / name
    path.write_text(json.dumps(as_dicts(ROWS), indent=indent), encoding="utf-8")
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert texts(splits) == {text for text, _ in ROWS}
    assert any("one JSON list" in note for note in splits.notes)
    assert read_labeled(path, labels=labels)[7].where == f"{path}[7]"
    rows = [*as_dicts(ROWS), "no object", {"text": "", "label": "good"}]
    message = refusal_of(path, json.dumps(rows, indent=indent))
    assert f"{path}[40]: a JSON text, not an object" in message
    assert f"{path}[41], field 'text', value ''" in message


def test_a_broken_json_list_says_where(tmp_path):
    path = tmp_path / "train.json"
    message = refusal_of(path, json.dumps(as_dicts(ROWS), indent=0)[:-2] + "\n")
    assert message.startswith(f"{path}:162: broken JSON at column")
    message = refusal_of(path, json.dumps(as_dicts(ROWS), indent=0).replace('"label": "good"', '"label": good', 1))
    assert message.startswith(f"{path}:8: broken JSON at column 10 (Expecting value) in '\"label\": good'")


def test_json_tables_and_indented_objects_have_their_own_remedies(tmp_path):
    path = tmp_path / "train.json"
    assert '.["rows"][]' in refusal_of(path, json.dumps({"rows": as_dicts(ROWS)}))
    assert '.["rows"][]' in refusal_of(path, json.dumps({"rows": as_dicts(ROWS)}, indent=1))
    columns = {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}
    assert "pandas.DataFrame(json.load(open(old)))" in refusal_of(path, json.dumps(columns))
    message = refusal_of(path, "\n".join(json.dumps(row, indent=1) for row in as_dicts(ROWS)))
    assert "jq -c ." in message
    assert "problems" not in message
    path.write_text(json.dumps(as_dicts(ROWS)[0], indent=1))
    assert len(read_labeled(path, labels=("good", "bad"))) == 1


def test_a_repeated_json_key_is_reported_if_it_is_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": "x", "id": 1, "id": 2}\n{"text": "b", "label": "x", "label": "y"}\n')
    assert [example.fields["text"] for example in read_unlabeled(path)] == ["a", "b"]
    assert refusal(train_file=path).startswith(f"{path}:2, field 'label': occurs more than once in this object")
