import bz2
import gzip

import pytest

from sptune.tasks import load_splits, read_labeled
from tasks.data.data_files import ROWS, as_dicts, refusal, refusal_of, texts, write_jsonl, write_separated


def test_a_byte_order_mark_and_windows_line_endings_are_accepted(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\r\nfine,a\r\nalso fine,b\r\n")
    assert [example.label for example in read_labeled(path, labels=("a", "b"))] == ["a", "b"]


def test_a_wrong_encoding_is_reported_with_the_line_and_the_command(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes("text,label\nfine,good\ncrème brûlée,bad\n".encode("cp1252"))
    message = refusal(train_file=path)
    assert f"{path}:3, value b'cr\\xe8me br\\xfbl\\xe9e,b': not UTF-8" in message
    assert "iconv -f CP1252 -t UTF-8" in message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_utf_16_is_recognized(tmp_path, encoding, name):
    path = tmp_path / name
    path.write_bytes("text,label\nfine,good\n".encode(encoding))
    message = refusal(train_file=path)
    assert "probably UTF-16" in message
    assert "iconv -f UTF-16" in message


def test_one_nul_byte_is_not_mistaken_for_utf_16(tmp_path):
    path = tmp_path / "train.csv"
    message = refusal_of(path, "text,label\nfine,good\nbr\0ken,bad\nmore,good\n")
    assert message.startswith(f"{path}:3: contains a NUL byte (near 'br\\x00ken,bad")
    assert "tr -d '\\000'" in message
    assert "UTF-16" not in message
    path.write_bytes(path.read_bytes().replace(b"\0", b""))  # what tr does
    assert len(read_labeled(path, labels=("good", "bad"))) == 3


def test_utf_16_without_its_mark_is_named_with_its_byte_order(tmp_path):
    for encoding in ("UTF-16LE", "UTF-16BE"):
        assert f"iconv -f {encoding} " in refusal_of(tmp_path / "train.csv", "text,label\nfine,a\n".encode(encoding))


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
def test_the_message_names_the_format_of_a_file_that_is_not_text(tmp_path, content, kind, remedy, name):
    message = refusal_of(tmp_path / name, content)
    assert f"{name}: not text but" in message
    assert kind in message
    assert remedy in message
    assert "UTF" not in message.replace("CSV UTF-8", "")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_compressed_files_are_read(tmp_path, pack):
    path = tmp_path / ("train.csv.gz" if pack is gzip.compress else "train.csv.bz2")
    path.write_bytes(pack(b"text,label\nfine,01\nalso fine,b\n"))
    assert [example.label for example in read_labeled(path, labels=("01", "b"))] == ["01", "b"]
    assert "cannot be unpacked" in refusal_of(path, path.read_bytes()[:-12])
    assert "cannot be unpacked" in refusal_of(path, b"text,label\nfine,01\n")


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl"])
def test_carriage_returns_alone_end_lines(tmp_path, name):
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


def test_a_carriage_return_inside_a_line_is_reported(tmp_path):
    path = tmp_path / "train.csv"
    message = refusal_of(path, "text,label\nfine,good\nbro\rken,bad\n")
    assert message.startswith(f"{path}:3: contains a carriage return outside quotation marks")
    assert "tr '\\r' ' '" in message
    path.write_bytes(path.read_bytes().replace(b"\r", b" "))  # what tr does
    assert len(read_labeled(path, labels=("good", "bad"))) == 2
    path.write_bytes(b'text,label\r\n"bro\rken",bad\r\nfine,good\r\n')
    assert read_labeled(path, labels=("good", "bad"))[0].fields["text"] == "bro\rken"


def test_lines_that_end_in_two_returns_and_a_line_feed_are_counted_once(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"text,label\r\r\nhello,a\r\r\n,b\r\r\n")
    assert f"{path}:3, field 'text', value '': empty text" in refusal(train_file=path)
