import pytest

from sptune.tasks import load_splits
from tasks.data.data_files import refusal, write_jsonl


@pytest.mark.parametrize("zero_width", ["\u200b", "\u00ad", "\ufeff", "\u200e", "\u2060", "\ufe0f", "\x08"])
def test_classes_that_differ_only_in_invisible_characters_are_refused(tmp_path, zero_width):
    rows = [{"text": f"text {index}", "label": ("good", "bad")[index % 2]} for index in range(40)]
    rows[6]["label"] = f"go{zero_width}od"
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert message.startswith(f"{file}:7, field 'label', value {rows[6]['label']!a}")
    assert message.isascii()
    assert load_splits(train_file=file, labels=["good", "bad", rows[6]["label"]])[0][2] == rows[6]["label"]


@pytest.mark.parametrize(
    ("rare", "common", "seen"),
    [
        ("cafe\u0301", "caf\u00e9", "U+0301 COMBINING ACUTE ACCENT"),
        ("\uff27ood", "Good", "U+FF27 FULLWIDTH LATIN CAPITAL LETTER G"),
        ("\uff11", "1", "U+FF11 FULLWIDTH DIGIT ONE"),
        ("New\u00a0York", "New York", "U+00A0 NO-BREAK SPACE"),
        ("New\u202fYork", "New York", "U+202F NARROW NO-BREAK SPACE"),
        ("sci\u2011fi", "sci-fi", "U+2011 NON-BREAKING HYPHEN"),
        ("\u22121", "-1", "U+2212 MINUS SIGN"),
        ("o\ufb03ce", "office", "U+FB03 LATIN SMALL LIGATURE FFI"),
    ],
)
def test_classes_that_differ_only_in_code_points_are_refused(tmp_path, rare, common, seen):
    rows = [{"text": f"text {index}", "label": (common, "other")[index % 2]} for index in range(40)]
    rows[6]["label"] = rare
    message = refusal(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert f"value {rare!a} (with {seen}): there is also a class {common!a}" in message
