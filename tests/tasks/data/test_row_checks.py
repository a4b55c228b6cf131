import json

import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits
from tasks.data.data_files import ROWS, as_dicts, refusal, write_jsonl


def test_text_pairs_use_two_columns(tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "gold": i % 2} for i in range(20)]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    labels, splits = load_splits(train_file=path, text_columns=("premise", "hypothesis"), label_column="gold")
    assert labels == ("0", "1")
    example = splits.train[0]
    assert list(example.fields) == ["premise", "hypothesis"]
    assert example.fields["premise"][1:] == example.fields["hypothesis"][1:]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "  ", "label": "good"}', "{path}:2, field 'text', value '  ': empty text"),
        ('{"text": null, "label": "good"}', "{path}:2, field 'text', value None: empty text"),
        ('{"text": 5, "label": "good"}', "{path}:2, field 'text', value 5: a number, not text"),
        ('{"text": "half \\ud800", "label": "good"}', "{path}:2, field 'text', value .*surrogate"),
        ('{"text": "fine", "label": ""}', "{path}:2, field 'label', value '': no label"),
        ('{"text": "fine", "label": null}', "{path}:2, field 'label', value None: no label"),
        ('{"text": "fine", "label": NaN}', "{path}:2, field 'label', value None: no label"),
        ('{"text": "fine", "label": ["good"]}', r"{path}:2, field 'label', value \['good'\]: a list, not one class"),
        ('{"text": "fine"}', "{path}:2, field 'label': missing, although other lines have it"),
        ('{"text": "fine", "label": ', "{path}:2: broken JSON at column"),
        ('["fine", "good"]', "{path}:2: a JSON list, not an object"),
    ],
)
def test_a_bad_line_is_reported_with_file_line_field_value_and_remedy(tmp_path, line, message):
    path = tmp_path / "train.jsonl"
    good = [json.dumps(row) for row in as_dicts(ROWS)]
    path.write_text("\n".join([good[0], line, *good[1:]]), encoding="utf-8")
    with pytest.raises(InputError, match=message.format(path=path)) as caught:
        load_splits(train_file=path)
    remedy = str(caught.value).rsplit(". ", 1)[1]
    assert remedy.split()[0] in ("Write", "Name", "Add")


@pytest.mark.parametrize("blank", ["\u200b", "\u00a0\ufeff"])
def test_invisible_characters_are_neither_a_text_nor_a_label(tmp_path, blank):
    rows = as_dicts(ROWS)
    rows[3]["text"] = blank
    rows[5]["label"] = blank
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert f"{file}:4, field 'text', value {blank!a}: empty text" in message
    assert f"{file}:6, field 'label', value {blank!a}: no label" in message


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refusal(train_file=path).startswith(f"{path}: empty")


def test_a_header_without_rows_is_reported(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n", encoding="utf-8")
    assert f"{path}: empty: it has a header but no rows" in refusal(train_file=path)
