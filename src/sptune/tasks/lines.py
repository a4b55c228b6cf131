"""The lines of text files: compression, encodings, line ends, and files that are no text at all."""

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

from sptune.tasks.problems import Problems

COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# How files begin that are no text, whatever their extension: what they are, and the remedy.
SIGNATURES = (
    (b"PK\x03\x04", "a ZIP archive, such as an Excel workbook (.xlsx)", "Save its sheet as 'CSV UTF-8', or unpack it."),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "Save its sheet as 'CSV UTF-8'."),
    (b"\x1f\x8b", "compressed with gzip", "Let its name end in .gz, or unpack it."),
    (b"BZh", "compressed with bzip2", "Let its name end in .bz2, or unpack it."),
    (b"\xfd7zXZ", "compressed with xz", "Let its name end in .xz, or unpack it."),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "Unpack it."),
    (b"PAR1", "a Parquet file", "Let its name end in .parquet."),
    (b"%PDF-", "a PDF document", "Export its table as CSV."),
    (b"version https://git-lfs", "a Git LFS pointer to a file that is not here", "Download the file: git lfs pull."),
    (b"<!DOCTYPE html", "a web page", "Download the data themselves."),
)


def decoded_lines(path: Path, problems: Problems, notes: list[str] | None = None) -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte order mark.

    What is not UTF-8 goes into the problems; a file that is no text is not read on. Where the first line ends in a
    carriage return alone, so do all; elsewhere a carriage return may stand inside of a line.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    number = 0
    try:
        with (compression or open)(path, "rb") as file:
            first = file.readline()
            if found := _other_than_text(first):
                problems.add(*found)
                return
            has_returns = re.search(rb"\r(?!\n)", first) is not None
            if has_returns and notes is not None:
                notes.append(f"{path}: its lines end in carriage returns only, as those of old Mac programs do.")
            for chunk in itertools.chain([first], file):
                for line in chunk.splitlines(keepends=True) if has_returns else [chunk]:
                    number += 1
                    yield _decoded(line, number, "MACINTOSH" if has_returns else "CP1252", problems)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if compression is None:
            raise
        problems.add(f"cannot be unpacked ({error})", "Download or compress the file anew.", line=number + 1)


def _other_than_text(first: bytes) -> tuple[str, str] | None:
    """What a file is that begins with this line and is no UTF-8 text, and the remedy."""
    for signature, kind, remedy in SIGNATURES:
        if first.startswith(signature):
            return f"not text but {kind}", remedy
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif first.count(0) * 3 > len(first):  # in ASCII text as UTF-16 every other byte is NUL
        encoding = "UTF-16BE" if first[0] == 0 else "UTF-16LE"
    else:
        return None
    return f"not UTF-8, probably {encoding} (near {first[:24]!a})", _convert(encoding)


def _decoded(line: bytes, number: int, likely: str, problems: Problems) -> str:
    """A line as text; `likely` is the encoding to name where it is not UTF-8."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        near = ascii(line[max(error.start - 12, 0) : error.start + 12])
        problems.add(f"not UTF-8 (near {near})", _convert(likely), line=number)
        text = line.decode("utf-8", errors="replace")
    if "\0" in text:
        place = text.index("\0")
        problems.add(
            f"holds a NUL byte (near {text[max(place - 12, 0) : place + 12]!a}), which no text does",
            r"Take the NUL bytes out, for example: tr -d '\000' < old > new.",
            line=number,
        )
        text = text.replace("\0", "")  # the csv module of Python 3.10 refuses it once more
    return text


def _convert(encoding: str) -> str:
    return f"Save the file as UTF-8, for example: iconv -f {encoding} -t UTF-8 old > new."
