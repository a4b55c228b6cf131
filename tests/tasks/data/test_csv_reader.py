import pytest

from sptune.errors import InputError
from sptune.tasks import load_splits, read_labeled, read_unlabeled
from tasks.data.data_files import ROWS, refusal, refusal_of, texts, write_separated


def test_quotation_marks_in_tab_separated_text_need_no_quoting(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"Yes" he said\ta\nhe said "no\tb\n', encoding="utf-8")
    found = read_labeled(path, labels=("a", "b"))
    assert [example.fields["text"] for example in found] == ['"Yes" he said', 'he said "no']


def test_quoted_tab_separated_text_may_hold_tabs_and_line_breaks(tmp_path):
    path = write_separated(tmp_path / "train.tsv", [("a\tb\nc", "x"), ("d", "y")], "\t")
    assert [example.fields["text"] for example in read_labeled(path, labels=("x", "y"))] == ["a\tb\nc", "d"]


def test_a_text_longer_than_the_csv_module_expects_is_read(tmp_path):
    path = write_separated(tmp_path / "train.csv", [("long " * 50_000, "a"), ("short", "b")])
    assert len(read_labeled(path, labels=("a", "b"))[0].fields["text"]) == 250_000


def test_a_row_with_too_many_values_says_to_quote(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\nfine,good\nnice, really,good\n", encoding="utf-8")
    message = refusal(train_file=path)
    assert f"{path}:3: 3 values, but the header names 2 columns (text, label)" in message
    assert "quotation marks" in message


def test_an_unclosed_quotation_mark_is_reported_at_its_line(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\nfine,good\n"nice,bad\nmore,good\n', encoding="utf-8")
    assert f"{path}:3: cannot be read from here on" in refusal(train_file=path)


@pytest.mark.parametrize(("name", "said"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", ";")])
@pytest.mark.parametrize("form", ["sep={}\n", "SEP={}\r\n", '"sep={}"\n', "\ufeffsep={}\n"])
def test_excels_separator_line_is_used(tmp_path, name, said, form):
    path = tmp_path / name
    content = form.format(said) + said.join(("text", "label")) + "\n" + said.join(('"a, b; c\td"', "x")) + "\n"
    path.write_text(content + said.join(("e", "")) + "\n", encoding="utf-8", newline="")
    with pytest.raises(InputError, match=f"{path}:4, field 'label'"):
        read_labeled(path, labels=("x", "y"))
    path.write_text(content, encoding="utf-8", newline="")
    found = read_labeled(path, labels=("x", "y"))
    assert [(example.fields["text"], example.label, example.where) for example in found] == [
        ("a, b; c\td", "x", f"{path}:3")
    ]


@pytest.mark.parametrize(("header", "row"), [("text,label,,", "{},{},,"), (",text,,label", "7,{},,{}")])
def test_columns_without_a_name_are_ignored(tmp_path, header, row):
    path = tmp_path / "train.csv"
    path.write_text("\n".join([header, *(row.format(text.replace(" ,", ""), label) for text, label in ROWS)]))
    labels, splits = load_splits(train_file=path)
    assert labels == ("bad", "good")
    assert len(texts(splits)) == len(ROWS)


def test_values_in_unnamed_columns_are_noted(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label,,\n" + "".join(f"{text.replace(',', '')},{label},,\n" for text, label in ROWS))
    assert not any("without a name" in note for note in load_splits(train_file=path)[1].notes)
    path.write_text(path.read_text().replace("number 3  told twice,good,", "number 3  told, twice,good"))
    message = refusal(train_file=path, labels=["good", "bad"])
    assert f"{path}:5, field 'label', value 'twice'" in message
    path.write_text(path.read_text().replace("told, twice,good", "told twice,good,seen"))
    notes = load_splits(train_file=path)[1].notes
    assert notes[0] == f"{path}:5: 'seen' is in a column without a name and is ignored."


def test_trailing_separators_have_their_own_remedy(tmp_path):
    path = tmp_path / "train.csv"
    message = refusal_of(path, "text,label\nfine,good,,\nalso fine,bad\n")
    assert "Remove the commas at the end of the line" in message
    path.write_text(path.read_text().replace(",,", ""))
    assert len(read_labeled(path, labels=("good", "bad"))) == 2


@pytest.mark.parametrize("content", ["id,text\n1,a\n,\n3,b\n", 'text\na\n""\nb\n', "id,text\n1,a\n2, \n3,b\n"])
def test_a_row_without_text_between_others_is_an_error(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"data\.csv:3, field 'text', value ' ?': empty text"):
        read_unlabeled(path)


@pytest.mark.parametrize("content", ["id,text\n\n1,a\n  \n\n3,b\n,\n,\n", "text\n\na\n\n\nb\n\n"])
def test_blank_lines_and_the_empty_rows_after_a_sheet_are_left_out(tmp_path, content):
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert [example.fields["text"] for example in read_unlabeled(path)] == ["a", "b"]


def test_long_texts_are_read_from_files_side_by_side(tmp_path):
    text = "y" * 200_000
    write_separated(tmp_path / "train.csv", ROWS)
    for name in ("validation", "test"):
        write_separated(tmp_path / f"{name}.csv", [(name + text, "good"), (name, "bad")])
    files = {f"{name}_file": tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    _, splits = load_splits(**files)
    assert splits.test[0].fields["text"] == "test" + text
