"""Reads the lines of text files: decompression, encodings, line endings, and detection of files that are not text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sptune.tasks.data.error_report import ErrorReport

COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# First bytes of files that are not text, whatever their extension; the kind of file; the remedy.
SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive, such as an Excel workbook (.xlsx)", "Save its sheet as 'CSV UTF-8', or unpack it."),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "Save its sheet as 'CSV UTF-8'."),
    (b"\x1f\x8b", "compressed with gzip", "Rename it to end in .gz, or unpack it."),
    (b"BZh", "compressed with bzip2", "Rename it to end in .bz2, or unpack it."),
    (b"\xfd7zXZ", "compressed with xz", "Rename it to end in .xz, or unpack it."),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "Unpack it."),
    (b"PAR1", "a Parquet file", "Rename it to end in .parquet."),
    (b"%PDF-", "a PDF document", "Export its table as CSV."),
    (b"version https://git-lfs", "a Git LFS pointer to a file that is not here", "Download the file: git lfs pull."),
    (b"<!DOCTYPE html", "a web page", "Download the data file itself."),
)


def read_lines(path: Path, errors: ErrorReport, notes: list[str] | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, with or without a byte order mark.

    Lines that are not UTF-8 are reported. Reading stops at once if the file is not text. If the first line ends in a
    carriage return, so do all others; otherwise a carriage return is part of a line.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    number = 0
    try:
        with (compression or open)(path, "rb") as file:
            first = file.readline()
            if error := _binary_format(first):
                errors.add(*error)
                return
            # Python's csv module can end lines in two of them and a line feed on Windows.
            has_returns = re.search(rb"\r+(?![\r\n])", first) is not None
            if has_returns and notes is not None:
                notes.append(f"{path}: its lines end in carriage returns only, as in old Mac files.")
            for chunk in itertools.chain([first], file):
                for line in chunk.splitlines(keepends=True) if has_returns else [chunk]:
                    number += 1
                    yield _decode(line, number, "MACINTOSH" if has_returns else "CP1252", errors)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if compression is None:
            raise
        errors.add(f"cannot be unpacked ({error})", "Download or compress the file again.", line=number + 1)


def _binary_format(first_line: bytes) -> tuple[str, str] | None:
    """The error and the remedy for a file that starts with this line; None if it looks like UTF-8 text."""
    for signature, kind, remedy in SIGNATURES:
        if first_line.startswith(signature):
            return f"not text but {kind}", remedy
    if first_line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif first_line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif first_line.count(0) * 3 > len(first_line):  # in ASCII text as UTF-16 every other byte is NUL
        encoding = "UTF-16BE" if first_line[0] == 0 else "UTF-16LE"
    else:
        return None
    return f"not UTF-8, probably {encoding} (near {first_line[:24]!a})", _conversion_remedy(encoding)


def _decode(line: bytes, number: int, likely_encoding: str, errors: ErrorReport) -> str:
    """Decode a line and report what is not UTF-8; the report suggests `likely_encoding`."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        near = line[max(error.start - 12, 0) : error.start + 12]
        errors.add("not UTF-8", _conversion_remedy(likely_encoding), line=number, value=near)
        text = line.decode("utf-8", errors="replace")
    if "\0" in text:
        place = text.index("\0")
        errors.add(
            f"contains a NUL byte (near {text[max(place - 12, 0) : place + 12]!a}), which is not text",
            r"Remove the NUL bytes, for example: tr -d '\000' < old > new.",
            line=number,
        )
        text = text.replace("\0", "")  # the csv module of Python 3.10 would raise an error of its own
    return text


def _conversion_remedy(encoding: str) -> str:
    return f"Save the file as UTF-8, for example: iconv -f {encoding} -t UTF-8 old > new."
