import bz2
import csv
import gzip
import json
import logging
import unicodedata

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sptune.errors import InputError
from sptune.tasks import load_benchmark, load_splits, read_labelled, read_unlabelled

ROWS = [(f"sentence number {index} , told twice", "good" if index % 2 else "bad") for index in range(40)]
OTHERS = [(f"another sentence {index}", "good" if index % 2 else "bad") for index in range(10)]


def as_dicts(rows):
    return [{"text": text, "label": label} for text, label in rows]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_separated(path, rows, delimiter=","):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("text", "label"), *rows])
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def train_file(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", as_dicts(ROWS))


def refusal(**options):
    with pytest.raises(InputError) as caught:
        load_splits(**options)
    return str(caught.value)


def texts(splits):
    return {example.fields["text"] for split in (splits.train, splits.validation, splits.test) for example in split}


# Formats


@pytest.mark.parametrize("extension", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path, extension):
    path = tmp_path / f"train{extension}"
    if extension == ".parquet":
        write_parquet(path, as_dicts(ROWS))
    elif extension in (".csv", ".tsv"):
        write_separated(path, ROWS, "\t" if extension == ".tsv" else ",")
    else:
        write_jsonl(path, as_dicts(ROWS))
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert texts(splits) == {text for text, _ in ROWS}


def test_an_example_knows_its_line(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text('text\n"one\nover two lines"\n\nthree\n', encoding="utf-8")
    assert [(example.fields["text"], example.where) for example in read_unlabelled(path)] == [
        ("one\nover two lines", f"{path}:2"),
        ("three", f"{path}:5"),
    ]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\nfine,a\r\nalso fine,b\r\n")
    assert [example.label for example in read_labelled(path, labels=("a", "b"))] == ["a", "b"]


def test_quotation_marks_in_tab_separated_text_need_no_quoting(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"Yes" he said\ta\nhe said "no\tb\n', encoding="utf-8")
    found = read_labelled(path, labels=("a", "b"))
    assert [example.fields["text"] for example in found] == ['"Yes" he said', 'he said "no']


def test_quoted_tab_separated_text_may_hold_tabs_and_line_breaks(tmp_path):
    path = write_separated(tmp_path / "train.tsv", [("a\tb\nc", "x"), ("d", "y")], "\t")
    assert [example.fields["text"] for example in read_labelled(path, labels=("x", "y"))] == ["a\tb\nc", "d"]


def test_a_text_longer_than_the_csv_module_expects_is_read(tmp_path):
    path = write_separated(tmp_path / "train.csv", [("long " * 50_000, "a"), ("short", "b")])
    assert len(read_labelled(path, labels=("a", "b"))[0].fields["text"]) == 250_000


def test_pairs_take_two_columns(tmp_path):
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "gold": i % 2} for i in range(20)]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    labels, splits = load_splits(train_file=path, text_columns=("premise", "hypothesis"), label_column="gold")
    assert labels == ("0", "1")
    example = splits.train[0]
    assert list(example.fields) == ["premise", "hypothesis"]
    assert example.fields["premise"][1:] == example.fields["hypothesis"][1:]


# Labels


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
    assert any("'ugly' has no example" in note for note in splits.notes)


def test_a_class_that_is_another_in_capitals_or_spaces_is_a_slip(tmp_path):
    rows = [{"text": f"text {index}", "label": ("New York", "Rome")[index % 2]} for index in range(40)]
    rows[6]["label"] = "new  york"
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert f"{file}:7, field 'label', value 'new  york'" in message
    assert "'New York', too, with 19 examples" in message
    labels, _ = load_splits(train_file=file, labels=["New York", "Rome", "new  york"])
    assert labels == ("New York", "Rome", "new  york")


def test_a_class_with_hardly_an_example_is_noted(tmp_path):
    rows = [{"text": f"text {index}", "label": ("a", "b")[index % 2]} for index in range(200)]
    rows[6]["label"] = "c"
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert [note for note in splits.notes if note.endswith("hardly be learned.")] == [
        f"The class 'c' has 1 of the 200 examples in {tmp_path / 'train.jsonl'}: it will hardly be learned."
    ]
    _, splits = load_splits(train_file=write_jsonl(tmp_path / "few.jsonl", as_dicts(ROWS)))
    assert not any(note.endswith("hardly be learned.") for note in splits.notes)


def test_numbers_in_one_file_and_digits_in_another_are_the_same_labels(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(20)])
    test = write_separated(tmp_path / "test.csv", [("x", "0"), ("y", "1")])
    labels, splits = load_splits(train_file=train, test_file=test)
    assert {example.label for example in splits.test} == set(labels)


@pytest.mark.parametrize("zero_width", ["\u200b", "\u00ad", "\ufeff", "\u200e", "\u2060", "\ufe0f", "\x08"])
def test_a_class_that_is_another_but_for_what_is_not_seen_is_a_slip(tmp_path, zero_width):
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
def test_a_class_that_is_another_in_other_codes_is_a_slip(tmp_path, rare, common, seen):
    rows = [{"text": f"text {index}", "label": (common, "other")[index % 2]} for index in range(40)]
    rows[6]["label"] = rare
    message = refusal(train_file=write_jsonl(tmp_path / "train.jsonl", rows))
    assert f"value {rare!a} (with {seen}): there is the class {common!a}" in message


def test_a_class_that_only_looks_like_one_of_training_is_spelled_out(tmp_path):
    cafe = unicodedata.normalize("NFC", "café")
    train = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"t{i}", (cafe, "tea")[i % 2]) for i in range(40)]))
    test = write_jsonl(
        tmp_path / "test.jsonl", as_dicts([("x", unicodedata.normalize("NFD", cafe)), ("y", "tea\u200b")])
    )
    for message in (refusal(train_file=train, test_file=test), refusal(train_file=test, labels=[cafe, "tea"])):
        assert "'cafe\\u0301' (with U+0301 COMBINING ACUTE ACCENT) only looks like 'caf\\xe9'" in message
        assert "'tea\\u200b' (with U+200B ZERO WIDTH SPACE) only looks like 'tea'" in message


def test_a_column_that_only_looks_like_the_one_wanted_is_spelled_out(tmp_path, train_file):
    path = tmp_path / "train.csv"
    path.write_text("te\u00adxt,label\nfine,good\n", encoding="utf-8")
    assert "'te\\xadxt' (with U+00AD SOFT HYPHEN) looks like it: write 'text'" in refusal(train_file=path)
    assert "'Label' looks like it" in refusal(
        train_file=write_jsonl(path.with_suffix(".json"), [{"text": "a", "Label": 1}])
    )


@pytest.mark.parametrize("blank", ["\u200b", "\u00a0\ufeff"])
def test_what_is_not_seen_is_neither_a_text_nor_a_label(tmp_path, blank):
    rows = as_dicts(ROWS)
    rows[3]["text"] = blank
    rows[5]["label"] = blank
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(train_file=file)
    assert f"{file}:4, field 'text', value {blank!a}: empty text" in message
    assert f"{file}:6, field 'label', value {blank!a}: no label" in message


def scores(tmp_path, labels, extension=".csv"):
    rows = [(f"text {index}", label) for index, label in enumerate(labels)]
    path = tmp_path / f"train{extension}"
    if extension == ".parquet":
        return write_parquet(path, as_dicts(rows))
    return write_jsonl(path, as_dicts(rows)) if extension == ".jsonl" else write_separated(path, rows)


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_a_column_of_scores_is_a_number_to_predict(tmp_path, extension):
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
def test_scores_are_found_however_they_are_written(tmp_path, labels):
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
def test_few_fractions_and_whole_numbers_are_classes_with_a_note_where_they_are_many(tmp_path, names, note):
    labels, splits = load_splits(train_file=scores(tmp_path, names * (600 // len(names))))
    assert set(labels) == set(names)
    assert any("whole numbers" in one and "order is not learned" in one for one in splits.notes) == note


# What is reported


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
        ('{"text": "fine"}', "{path}:2, field 'label': missing, though other lines have it"),
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


def test_several_problems_are_reported_together_the_first_ten_and_the_count(tmp_path):
    rows = as_dicts(ROWS)
    for index in range(5, 20):
        rows[index]["text"] = ""
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "fine", "label": "good"}, {"text": "", "label": "bad"}])
    message = refusal(train_file=train, test_file=test)
    assert f"{train} has 15 problems, the first 10:" in message
    assert f"{train}:6," in message
    assert f"{train}:15," in message
    assert f"{train}:16," not in message
    assert f"{test}:2, field 'text', value ''" in message


def test_a_missing_column_is_reported_once_with_the_columns_there_are(tmp_path, train_file):
    message = refusal(train_file=train_file, text_columns=("review",))
    assert message.startswith(f"{train_file}: no line has a field 'review'; found 'text', 'label'")
    path = write_separated(tmp_path / "train.csv", ROWS)
    message = refusal(train_file=path, label_column="stars")
    assert message.startswith(f"{path}: no column 'stars'; found 'text', 'label'")
    path = write_parquet(tmp_path / "train.parquet", as_dicts(ROWS))
    assert "no column 'stars'" in refusal(train_file=path, label_column="stars")


def test_a_file_separated_by_semicolons_is_recognised(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text;label\nfine;good\n", encoding="utf-8")
    assert "another character" in refusal(train_file=path)


def test_a_row_with_too_many_values_says_to_quote(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\nfine,good\nnice, really,good\n", encoding="utf-8")
    message = refusal(train_file=path)
    assert f"{path}:3: 3 values where the header names 2 columns (text, label)" in message
    assert "quotation marks" in message


def test_an_unclosed_quotation_mark_is_reported_where_it_opens(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\nfine,good\n"nice,bad\nmore,good\n', encoding="utf-8")
    assert f"{path}:3: cannot be read on" in refusal(train_file=path)


def test_a_wrong_encoding_is_reported_with_the_line_and_the_command(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes("text,label\nfine,good\ncrème brûlée,bad\n".encode("cp1252"))
    message = refusal(train_file=path)
    assert f"{path}:3: not UTF-8" in message
    assert "iconv -f CP1252 -t UTF-8" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_utf_16_is_recognised(tmp_path, encoding, name):
    path = tmp_path / name
    path.write_bytes("text,label\nfine,good\n".encode(encoding))
    message = refusal(train_file=path)
    assert "probably UTF-16" in message
    assert "iconv -f UTF-16" in message


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refusal(train_file=path).startswith(f"{path}: empty")


def test_a_header_without_rows_is_reported(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n", encoding="utf-8")
    assert f"{path}: empty: there is a header but no row" in refusal(train_file=path)


def broken(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return refusal(train_file=path)


def test_one_nul_byte_is_not_taken_for_utf_16(tmp_path):
    path = tmp_path / "train.csv"
    message = broken(path, "text,label\nfine,good\nbr\0ken,bad\nmore,good\n")
    assert message.startswith(f"{path}:3: holds a NUL byte (near 'br\\x00ken,bad")
    assert "tr -d '\\000'" in message
    assert "UTF-16" not in message
    path.write_bytes(path.read_bytes().replace(b"\0", b""))  # what tr does
    assert len(read_labelled(path, labels=("good", "bad"))) == 3


def test_utf_16_without_its_mark_is_named_with_its_byte_order(tmp_path):
    for encoding in ("UTF-16LE", "UTF-16BE"):
        assert f"iconv -f {encoding} " in broken(tmp_path / "train.csv", "text,label\nfine,a\n".encode(encoding))


@pytest.mark.parametrize(
    ("content", "kind", "remedy"),
    [
        (b"PK\x03\x04\x14\0\0\0", "an Excel workbook", "CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\0\0", "an old Excel workbook", "CSV UTF-8"),
        (gzip.compress(b"text,label\n", mtime=0), "compressed with gzip", ".gz"),
        (b"PAR1\x15\0", "a Parquet file", ".parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>\n", "a web page", "Download"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_file_that_is_no_text_is_called_what_it_is(tmp_path, content, kind, remedy, name):
    message = broken(tmp_path / name, content)
    assert f"{name}: not text but" in message
    assert kind in message
    assert remedy in message
    assert "UTF" not in message.replace("CSV UTF-8", "")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files_are_read(tmp_path, pack):
    path = tmp_path / ("train.csv.gz" if pack is gzip.compress else "train.csv.bz2")
    path.write_bytes(pack(b"text,label\nfine,01\nalso fine,b\n"))
    assert [example.label for example in read_labelled(path, labels=("01", "b"))] == ["01", "b"]
    assert "cannot be unpacked" in broken(path, path.read_bytes()[:-12])
    assert "cannot be unpacked" in broken(path, b"text,label\nfine,01\n")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl"])
def test_carriage_returns_end_lines_where_there_is_nothing_else(tmp_path, name):
    path = tmp_path / name
    if name == "train.jsonl":
        write_jsonl(path, as_dicts(ROWS))
    else:
        write_separated(path, [("over\ntwo lines", "bad"), *ROWS], "\t" if name == "train.tsv" else ",")
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r"))
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert texts(splits) >= {text for text, _ in ROWS}
    assert len(texts(splits)) == len(ROWS) + (name != "train.jsonl")
    assert any("carriage returns only" in note for note in splits.notes)


def test_a_carriage_return_inside_a_line_is_not_called_a_quotation_mark(tmp_path):
    path = tmp_path / "train.csv"
    message = broken(path, "text,label\nfine,good\nbro\rken,bad\n")
    assert message.startswith(f"{path}:3: holds a carriage return outside quotation marks")
    assert "tr '\\r' ' '" in message
    path.write_bytes(path.read_bytes().replace(b"\r", b" "))  # what tr does
    assert len(read_labelled(path, labels=("good", "bad"))) == 2
    path.write_bytes(b'text,label\r\n"bro\rken",bad\r\nfine,good\r\n')
    assert read_labelled(path, labels=("good", "bad"))[0].fields["text"] == "bro\rken"


@pytest.mark.parametrize(("name", "said"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ";")])
@pytest.mark.parametrize("form", ["sep={}\n", "SEP={}\r\n", '"sep={}"\n', "\ufeffsep={}\n"])
def test_the_line_that_names_excels_separator_is_obeyed(tmp_path, name, said, form):
    path = tmp_path / name
    content = form.format(said) + said.join(("text", "label")) + "\n" + said.join(('"a, b; c\td"', "x")) + "\n"
    path.write_text(content + said.join(("e", "")) + "\n", encoding="utf-8", newline="")
    with pytest.raises(InputError, match=f"{path}:4, field 'label'"):
        read_labelled(path, labels=("x", "y"))
    path.write_text(content, encoding="utf-8", newline="")
    found = read_labelled(path, labels=("x", "y"))
    assert [(example.fields["text"], example.label, example.where) for example in found] == [
        ("a, b; c\td", "x", f"{path}:3")
    ]


def test_the_remedy_for_another_separator_can_be_followed(tmp_path):
    path = tmp_path / "train.csv"
    message = broken(path, "text;label\nfine;good\n")
    assert "'sep=;'" in message
    path.write_text("sep=;\n" + path.read_text())
    assert len(read_labelled(path, labels=("good", "bad"))) == 1


def test_how_an_odd_file_was_read_is_said_in_evaluation_and_prediction_too(tmp_path, caplog):
    path = tmp_path / "new.csv"
    path.write_text("sep=;\ntext;label\nfine;good\n")
    with caplog.at_level(logging.WARNING):
        read_labelled(path, labels=("good", "bad"))
        read_unlabelled(path)
    assert [record.getMessage().count("separated by ';'") for record in caplog.records] == [1, 1]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_json_list_is_read_entry_by_entry(tmp_path, indent, name):
    path = tmp_path / name
    path.write_text(json.dumps(as_dicts(ROWS), indent=indent), encoding="utf-8")
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert texts(splits) == {text for text, _ in ROWS}
    assert any("one JSON list" in note for note in splits.notes)
    assert read_labelled(path, labels=labels)[7].where == f"{path}[7]"
    rows = [*as_dicts(ROWS), "no object", {"text": "", "label": "good"}]
    message = broken(path, json.dumps(rows, indent=indent))
    assert f"{path}[40]: a JSON text, not an object" in message
    assert f"{path}[41], field 'text', value ''" in message


def test_a_broken_json_list_says_where(tmp_path):
    path = tmp_path / "train.json"
    message = broken(path, json.dumps(as_dicts(ROWS), indent=0)[:-2] + "\n")
    assert message.startswith(f"{path}:162: broken JSON at column")
    message = broken(path, json.dumps(as_dicts(ROWS), indent=0).replace('"label": "good"', '"label": good', 1))
    assert message.startswith(f"{path}:8: broken JSON at column 10 (Expecting value) in '\"label\": good'")


def test_json_that_is_a_table_or_stretches_over_lines_has_remedies_of_its_own(tmp_path):
    path = tmp_path / "train.json"
    assert '.["rows"][]' in broken(path, json.dumps({"rows": as_dicts(ROWS)}))
    assert '.["rows"][]' in broken(path, json.dumps({"rows": as_dicts(ROWS)}, indent=1))
    columns = {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}
    assert "pandas.DataFrame(json.load(open(old)))" in broken(path, json.dumps(columns))
    message = broken(path, "\n".join(json.dumps(row, indent=1) for row in as_dicts(ROWS)))
    assert "jq -c ." in message
    assert "problems" not in message
    path.write_text(json.dumps(as_dicts(ROWS)[0], indent=1))
    assert len(read_labelled(path, labels=("good", "bad"))) == 1


def test_a_name_twice_in_a_json_object_counts_where_it_is_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": "x", "id": 1, "id": 2}\n{"text": "b", "label": "x", "label": "y"}\n')
    assert [example.fields["text"] for example in read_unlabelled(path)] == ["a", "b"]
    assert refusal(train_file=path).startswith(f"{path}:2, field 'label': stands in this object more than once")


# Columns nobody reads


@pytest.mark.parametrize(("header", "row"), [("text,label,,", "{},{},,"), (",text,,label", "7,{},,{}")])
def test_columns_without_a_name_are_ignored(tmp_path, header, row):
    path = tmp_path / "train.csv"
    path.write_text("\n".join([header, *(row.format(text.replace(" ,", ""), label) for text, label in ROWS)]))
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert len(texts(splits)) == len(ROWS)


def test_values_beyond_the_named_columns_are_said(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label,,\n" + "".join(f"{text.replace(',', '')},{label},,\n" for text, label in ROWS))
    assert not any("without a name" in note for note in load_splits(train_file=path)[1].notes)
    path.write_text(path.read_text().replace("number 3  told twice,good,", "number 3  told, twice,good"))
    message = refusal(train_file=path, labels=["good", "bad"])
    assert f"{path}:5, field 'label', value 'twice'" in message
    path.write_text(path.read_text().replace("told, twice,good", "told twice,good,seen"))
    notes = load_splits(train_file=path)[1].notes
    assert notes[0] == f"{path}:5: 'seen' is in a column without a name: not read."


def test_separators_at_the_end_of_a_line_have_a_remedy_of_their_own(tmp_path):
    path = tmp_path / "train.csv"
    message = broken(path, "text,label\nfine,good,,\nalso fine,bad\n")
    assert "Take the commas at the end of the line out" in message
    path.write_text(path.read_text().replace(",,", ""))
    assert len(read_labelled(path, labels=("good", "bad"))) == 2


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".parquet"])
def test_a_name_twice_counts_among_the_columns_that_are_read(tmp_path, extension):
    path = tmp_path / f"train{extension}"
    names = ["text", "label", "note", "note"]
    if extension == ".parquet":
        columns = [[f"text {index}" for index in range(40)], ["a", "b"] * 20, ["x"] * 40, ["y"] * 40]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(one) for one in columns], names), path)
    else:
        delimiter = "," if extension == ".csv" else "\t"
        rows = [names, *([f"text {index}", "ab"[index % 2], "x", "y"] for index in range(40))]
        path.write_text("\n".join(delimiter.join(row) for row in rows))
    assert load_splits(train_file=path)[0] == ("a", "b")
    message = refusal(train_file=path, label_column="note")
    assert message == f"{path}: there are 2 columns 'note'. Rename those that are not to be read."


def test_what_is_no_parquet_is_reported(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text("text,label\n", encoding="utf-8")
    assert "not a Parquet file" in refusal(train_file=path)


def test_a_bad_parquet_row_is_counted_from_one(tmp_path):
    rows = as_dicts(ROWS)
    rows[6]["text"] = ""
    path = write_parquet(tmp_path / "train.parquet", rows)
    assert f"{path}, row 7, field 'text'" in refusal(train_file=path)


def test_one_class_only_is_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", "good") for i in range(9)]))
    assert f"{path}, field 'label', value 'good': all 9 examples have this one label" in refusal(train_file=path)


def test_labels_that_are_numbers_to_predict_are_reported(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", as_dicts([(f"text {i}", i / 7) for i in range(90)]))
    assert "90 different labels in 90 examples" in refusal(train_file=path)


def test_a_test_file_whose_labels_were_never_seen_in_training_is_reported(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "1"), ("b", "0"), ("c", "1")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}, field 'label': none of its labels ('0', '1') was seen in training" in message
    assert f"{train_file} has 'bad', 'good'" in message
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "god")]))
    message = refusal(train_file=train_file, test_file=test)
    assert f"{test}:2, field 'label', value 'god': this label was never seen in training" in message


def test_a_test_file_of_one_class_is_noted(tmp_path, train_file):
    test = write_jsonl(tmp_path / "test.jsonl", as_dicts([("a", "good"), ("b", "good")]))
    _, splits = load_splits(train_file=train_file, test_file=test)
    assert any("of the class 'good'" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either files"),
        ({"train_file": "train.jsonl", "data": "x"}, "Give either files"),
        ({"data": "x", "test_file": "test.jsonl"}, "go with train_file"),
        ({"train_file": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"train_file": "train.jsonl", "text_columns": ()}, "at least one column"),
        ({"train_file": "train.jsonl", "text_columns": ("label",)}, "at least one column"),
        ({"train_file": "train.jsonl", "labels": ["good"]}, "two different classes"),
        ({"train_file": "train.jsonl", "test_file": "./train.jsonl"}, "same file"),
        ({"train_file": "folder"}, "is a folder"),
        ({"train_file": "train.xlsx"}, r"'\.xlsx' are not read.*\.jsonl"),
        ({"train_file": "train.jsonl", "few_shot": 100}, "few_shot=100"),
    ],
)
def test_options_that_cannot_be_right(tmp_path, monkeypatch, train_file, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(InputError, match=message):
        load_splits(**options)


def test_texts_to_predict_need_no_label_and_are_checked_too(tmp_path):
    path = write_jsonl(tmp_path / "new.jsonl", [{"text": "fine"}, {"text": ""}])
    with pytest.raises(InputError, match=f"{path}:2, field 'text', value ''"):
        read_unlabelled(path)


# Data sets by name


@pytest.fixture
def hub_like():
    """Splits with a class label, in its declared order."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "unused", "affirmative"])}
    )

    def split(rows, withheld=False):
        label = {"bad": 0, "good": 2}
        return datasets.Dataset.from_dict(
            {"text": [text for text, _ in rows], "label": [-1 if withheld else label[name] for _, name in rows]},
            features,
        )

    return lambda **splits: datasets.DatasetDict(
        {name: split(rows, name == "withheld_test") for name, rows in splits.items()}
    )


def test_a_folder_that_save_to_disk_wrote(tmp_path, hub_like):
    hub_like(train=ROWS, test=OTHERS).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(data=str(tmp_path / "saved"))
    assert labels == ("negative", "affirmative")
    assert len(splits.test) == 10
    assert splits.test[3].where.endswith("saved[test][3]")
    assert splits.test[3].fields["text"] == "another sentence 3"


def test_a_single_saved_data_set_is_divided(tmp_path, hub_like):
    hub_like(train=ROWS)["train"].save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(data=str(tmp_path / "saved"))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (28, 4, 8)


def test_a_local_folder_of_files(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", as_dicts(ROWS))
    write_jsonl(folder / "test.jsonl", as_dicts(OTHERS))
    labels, splits = load_splits(data=str(folder))
    assert labels == ("bad", "good")
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}


AS_WRITTEN = [
    "1.1",
    "1.10",
    "01",
    "1",
    "NA",
    "None",
    "null",
    "nan",
    "inf",
    "1e5",
    "TRUE",
    "true ",
    "2024-01-31",
    "0x10",
]
CLASSES = sorted(label.strip() for label in AS_WRITTEN if label != "true ")


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("way", ["folder", "file", "data"])
def test_nothing_is_guessed_from_text(tmp_path, extension, way):
    rows = [(f"{label} {index}", label) for index in range(8) for label in CLASSES]
    path = tmp_path / "kept" / f"train{extension}"
    path.parent.mkdir()
    if extension == ".parquet":
        write_parquet(path, as_dicts(rows))
    elif extension == ".json":
        path.write_text(json.dumps(as_dicts(rows)))
    elif extension == ".jsonl":
        write_jsonl(path, as_dicts(rows))
    else:
        write_separated(path, rows, "\t" if extension == ".tsv" else ",")
        if extension == ".csv.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    name = {"folder": {"data": str(path.parent)}, "file": {"train_file": path}, "data": {"data": str(path)}}[way]
    labels, splits = load_splits(**name)
    assert sorted(labels) == CLASSES
    examples = [*splits.train, *splits.validation, *splits.test]
    assert {(example.fields["text"], example.label) for example in examples} == set(rows)
    assert splits.train[0].where.startswith(
        f"{path}{'[' if extension == '.json' else ', row' if extension == '.parquet' else ':'}"
    )


def test_texts_that_look_like_numbers_are_texts_in_a_folder_too(tmp_path):
    write_separated(tmp_path / "train.csv", [(str(index), "ab"[index % 2]) for index in range(40)])
    _, splits = load_splits(data=str(tmp_path))
    assert texts(splits) == {str(index) for index in range(40)}


def test_the_folder_one_is_in_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_separated(tmp_path / "train.csv", [("", "good"), *ROWS])
    assert refusal(data=".").startswith("train.csv:2, field 'text'")


def test_a_split_may_lie_in_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        path = tmp_path / "kept" / "data" / f"train-0000{number}-of-00002.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_separated(path, ROWS[number::2])
    _, splits = load_splits(data="kept")
    assert texts(splits) == {text for text, _ in ROWS}
    write_separated(path, [("", "good"), *ROWS[1::2]])
    assert refusal(data="kept").startswith("kept/data/train-00001-of-00002.csv:2, field 'text', value ''")


def test_a_file_of_a_folder_that_is_not_read_is_noted(tmp_path):
    write_separated(tmp_path / "train.csv", ROWS)
    assert not any("not read" in note for note in load_splits(data=str(tmp_path))[1].notes)
    write_jsonl(tmp_path / "more.jsonl", as_dicts(OTHERS))
    notes = load_splits(data=str(tmp_path))[1].notes
    assert notes[0].startswith(f"{tmp_path / 'more.jsonl'}: not read.")


def test_a_folder_with_configurations_and_declared_classes(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: one.csv}\n- {config_name: two, data_files: two.jsonl}\n"
        "dataset_info:\n- config_name: two\n  features:\n  - {name: text, dtype: string}\n"
        "  - {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}\n---\n"
    )
    write_separated(tmp_path / "one.csv", ROWS)
    write_jsonl(tmp_path / "two.jsonl", [{"text": text, "label": int(label == "good")} for text, label in ROWS])
    for config in ("one", "two"):
        labels, splits = load_splits(data=str(tmp_path), data_config=config)
        assert labels == ("bad", "good")
        assert {(example.fields["text"], example.label) for example in splits.train} <= set(ROWS)
    assert "Name one of its configurations" in refusal(data=str(tmp_path), data_config="three")


@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_parquet_file_that_declares_its_classes_names_them(tmp_path, hub_like, way):
    hub_like(train=ROWS)["train"].to_parquet(tmp_path / "train.parquet")
    name = {"train_file": tmp_path / "train.parquet"} if way == "file" else {"data": str(tmp_path)}
    assert load_splits(**name)[0] == ("negative", "affirmative")


def test_what_has_no_configurations_refuses_one(tmp_path, hub_like, train_file):
    hub_like(train=ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in (str(tmp_path / "saved"), str(train_file)):
        assert "has no configurations" in refusal(data=name, data_config="plain")


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow", "jax"])
def test_the_format_that_a_data_set_was_saved_in_does_not_matter(tmp_path, hub_like, kind):
    saved = hub_like(train=ROWS, test=OTHERS)
    if kind == "jax":  # not installed, perhaps, so written as if it had been
        saved.save_to_disk(str(tmp_path / "saved"))
        for state in (tmp_path / "saved").glob("*/state.json"):
            state.write_text(json.dumps(json.loads(state.read_text()) | {"_format_type": "jax"}))
    else:
        saved.with_format(kind, columns=["label"]).save_to_disk(str(tmp_path / "saved"))
    labels, splits = load_splits(data=str(tmp_path / "saved"))
    assert labels == ("negative", "affirmative")
    assert texts(splits) == {text for text, _ in ROWS + OTHERS}


def test_a_bad_row_of_a_data_set_is_named_as_it_is_indexed(tmp_path, hub_like):
    rows = [*ROWS[:4], (" ", "bad"), *ROWS[4:]]
    name = str(tmp_path / "saved")
    hub_like(train=rows).save_to_disk(name)
    assert f"{name}[train][4], field 'text', value ' ': empty text" in refusal(data=name)
    assert "no column 'review'; found 'text', 'label'" in refusal(data=name, text_columns=("review",))


def test_a_test_split_with_withheld_labels_gives_way_to_validation(tmp_path, hub_like):
    loaded = hub_like(train=ROWS, validation=OTHERS, withheld_test=ROWS[:5])
    loaded["test"] = loaded.pop("withheld_test")
    name = str(tmp_path / "saved")
    loaded.save_to_disk(name)
    _, splits = load_splits(data=name)
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}
    assert (len(splits.train), len(splits.validation)) == (36, 4)
    assert any("withheld" in note for note in splits.notes)


def test_splits_with_other_names_can_be_chosen(tmp_path, hub_like):
    name = str(tmp_path / "saved")
    hub_like(train=ROWS, validation_matched=OTHERS).save_to_disk(name)
    _, splits = load_splits(data=name, split_names={"test": "validation_matched"})
    assert len(splits.test) == 10
    assert "no split 'exam'; they have train, validation_matched" in refusal(data=name, split_names={"test": "exam"})


def test_a_hub_name_without_a_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal(data="nobody/has-this-data", data_config="plain")
    assert message.startswith("The data 'nobody/has-this-data' with configuration 'plain' cannot be loaded:")
    assert "Without a network give a local folder" in message


def test_a_folder_without_data_says_what_it_should_hold(tmp_path):
    assert "named after their split" in refusal(data=str(tmp_path))


def without_labels(hub_like, rows):
    loaded = hub_like(train=ROWS)["train"].to_dict()
    loaded["label"] = [rows.get(index, label) for index, label in enumerate(loaded["label"])]
    return datasets.Dataset.from_dict(loaded, hub_like(train=ROWS)["train"].features)


def test_a_class_label_of_minus_one_is_shown_and_can_be_filtered(tmp_path, hub_like):
    data = without_labels(hub_like, {2: -1})
    data.save_to_disk(str(tmp_path / "saved"))
    message = refusal(data=str(tmp_path / "saved"))
    assert "saved[train][2], field 'label', value -1: no label" in message
    assert "data.filter(lambda row: row['label'] != -1).save_to_disk(FOLDER)" in message
    data.filter(lambda row: row["label"] != -1).save_to_disk(str(tmp_path / "filtered"))
    assert len(texts(load_splits(data=str(tmp_path / "filtered"))[1])) == len(ROWS) - 1
    data.to_parquet(tmp_path / "train.parquet")
    assert "row 3, field 'label', value -1: no label" in refusal(train_file=tmp_path / "train.parquet")


def test_a_class_label_that_no_name_stands_for_is_shown(tmp_path):
    table = pyarrow.Table.from_pylist([{"text": f"text {index}", "label": index % 2 + 6} for index in range(40)])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    pyarrow.parquet.write_table(table.cast(features.arrow_schema), tmp_path / "train.parquet")
    message = refusal(train_file=tmp_path / "train.parquet")
    assert "row 1, field 'label', value 6: not one of the declared classes 0 (a), 1 (b)" in message


def test_a_file_whose_labels_are_all_withheld_says_so_once(tmp_path, hub_like):
    hub_like(withheld_test=OTHERS)["withheld_test"].to_parquet(tmp_path / "test.parquet")
    hub_like(train=ROWS)["train"].to_parquet(tmp_path / "train.parquet")
    message = refusal(train_file=tmp_path / "train.parquet", test_file=tmp_path / "test.parquet")
    assert message.startswith(f"{tmp_path / 'test.parquet'}, field 'label', value -1: none of its 10 rows has a label")
    assert "\n" not in message


def test_a_folder_whose_test_labels_are_withheld_gives_way_to_validation(tmp_path):
    write_separated(tmp_path / "train.csv", ROWS)
    write_separated(tmp_path / "validation.csv", OTHERS)
    write_separated(tmp_path / "test.csv", [(text, "") for text, _ in ROWS[:5]])
    _, splits = load_splits(data=str(tmp_path))
    assert {example.fields["text"] for example in splits.test} == {text for text, _ in OTHERS}
    assert any("withheld" in note for note in splits.notes)


def test_a_split_that_a_filter_left_empty_is_not_used(tmp_path, hub_like):
    loaded = hub_like(train=ROWS, validation=OTHERS, withheld_test=OTHERS)
    loaded["test"] = loaded.pop("withheld_test")
    loaded.filter(lambda row: row["label"] != -1).save_to_disk(str(tmp_path / "saved"))
    _, splits = load_splits(data=str(tmp_path / "saved"))
    assert len(splits.test) == len(OTHERS)
    assert any("[test] has no rows: it is not used" in note for note in splits.notes)


def test_a_saved_split_without_a_file_counts_as_empty(tmp_path, hub_like):
    loaded = hub_like(train=ROWS, validation=OTHERS)
    loaded["test"] = loaded["train"].select([])
    loaded.save_to_disk(str(tmp_path / "saved"))
    state = tmp_path / "saved" / "test" / "state.json"
    about = json.loads(state.read_text())
    about["_data_files"] = []
    state.write_text(json.dumps(about))
    _, splits = load_splits(data=str(tmp_path / "saved"))
    assert any("[test] has no rows: it is not used" in note for note in splits.notes)


def test_a_benchmark_task_brings_its_own_names_for_columns_and_classes(tmp_path):
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
        }
    )
    columns = {
        "sentence1": [f"a {i}" for i in range(40)],
        "sentence2": [f"b {i}" for i in range(40)],
        "label": [i % 2 for i in range(40)],
    }
    split = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict({"train": split, "test": split.select(range(10))}).save_to_disk(str(tmp_path / "mrpc"))
    splits = load_benchmark("mrpc", data=str(tmp_path / "mrpc"))
    assert len(splits.test) == 10
    assert splits.test[1].fields == {"text_a": "a 1", "text_b": "b 1"}
    assert [example.label for example in splits.test[:2]] == ["not_paraphrase", "paraphrase"]
