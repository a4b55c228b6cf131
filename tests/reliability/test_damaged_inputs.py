"""Generated options and damaged files: each gives a result or an `InputError`, before a model is loaded.

`make campaign` tries 10,000, the test suite a tenth.
"""

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reliability.campaign import tries
from sptune.errors import InputError
from sptune.runs.options.run_options import RunOptions, all_options
from sptune.runs.output_folder import read_config
from sptune.runs.task_data import read_data

ROWS = [
    {"text": f"film {n} was ø fine", "label": ("good", "bad")[n % 2], "tags": ["a"], "score": n / 3} for n in range(12)
]
PROMPTS = [{"prompt": f"question {n}?", "completion": f"answer {n}", "text": "x", "label": "y"} for n in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]} for n in range(12)
]
KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "several labels": {"task_kind": "multi_label", "label_column": "tags"},
    "numbers": {"task_kind": "regression", "label_column": "score"},
    "prompts": {"task_kind": "generate"},
    "label words": {"template": "{text} It was [MASK].", "label_words": {"good": "good", "bad": "bad"}},
}
MODEL = {"model": "bert-base-uncased"}

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.binary(max_size=4),
    st.sampled_from(["search", "all", "-1", "1e400", "nan", "\x00", "../..", "prepend", "generate"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


class Outcomes(Counter[str]):
    """Counts results and errors."""

    def of(self, call: Callable[[], Any]) -> None:
        """Call what must return, or raise an InputError."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                call()
            self["results"] += 1
        except InputError:
            self["errors"] += 1


def test_options(record: Callable[..., None]) -> None:
    outcomes = Outcomes()
    names = st.sampled_from(sorted(all_options())) | st.sampled_from(["prompts", "search"]) | st.text(max_size=8)

    @tries(3000)
    @given(st.dictionaries(names, VALUES, max_size=5))
    def check(values: dict[str, Any]) -> None:
        outcomes.of(lambda: RunOptions.from_mapping(values, "run.yaml"))

    check()
    record("options", **outcomes)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with some of it cut off, repeated, replaced or inserted."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(result)))
        end = min(len(result), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["cut off", "remove", "replace", "insert", "repeat", "zeros"]))
        if kind == "cut off":
            del result[start:]
        elif kind == "remove":
            del result[start:end]
        elif kind == "repeat":
            result[start:start] = result[start:end]
        elif kind == "zeros":
            result[start:end] = bytes(end - start)
        else:
            result[start : end if kind == "replace" else start] = draw(st.binary(max_size=8))
    return bytes(result)


def test_yaml_files(record: Callable[..., None], tmp_path: Path) -> None:
    outcomes, file = Outcomes(), tmp_path / "run.yaml"
    nested = {"prompts": {"bottleneck_dim": 4}, "search": {"searcher": "fair"}, "labels": ["good", "bad"], "seed": 3}
    content = yaml.safe_dump({"model": "m", "train_file": "t.jsonl", **nested}).encode()

    @tries(2000)
    @given(damaged(content) | st.binary(max_size=60))
    def check(text: bytes) -> None:
        file.write_bytes(text)
        outcomes.of(lambda: RunOptions.from_mapping(read_config(file), str(file)))

    check()
    record("YAML files", **outcomes)


def _csv(separator: str) -> bytes:
    lines = [separator.join(("text", "label", "tags", "score"))]
    lines += [separator.join((f'"{row["text"]}"', str(row["label"]), "a", str(row["score"]))) for row in ROWS]
    return "\n".join(lines).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


FILES = {
    "classes.jsonl": _jsonl(ROWS),
    "classes.csv": _csv(","),
    "classes.tsv": _csv("\t"),
    "classes.parquet": _parquet(ROWS),
    "prompts.jsonl": _jsonl(PROMPTS),
    "chats.jsonl": _jsonl(CHATS),
    "chats.parquet": _parquet(CHATS),
}


@pytest.mark.parametrize("name", FILES)
def test_data_files(name: str, record: Callable[..., None], tmp_path: Path) -> None:
    outcomes = Outcomes()

    @tries(700)
    @given(
        damaged(FILES[name]),
        st.sampled_from(sorted(KINDS)),
        st.sampled_from([os.path.splitext(one)[1] for one in FILES]),
    )
    def check(content: bytes, kind: str, other: str) -> None:
        # Some files have the ending of another format.
        ending = other if len(content) % 5 == 0 else os.path.splitext(name)[1]
        file = tmp_path / f"data{ending}"
        file.write_bytes(content)
        outcomes.of(lambda: read_data(RunOptions(**MODEL, **KINDS[kind], train_file=str(file), output_dir="out")))

    check()
    record(f"data files: {name}", **outcomes)
