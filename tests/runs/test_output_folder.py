"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from sptune.errors import InputError
from sptune.runs import output_folder as outputs


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    outputs.write_text(path, "old")

    def rows() -> object:
        yield {"text": "first"}
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        outputs.write_json_lines(path, rows())  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "stale").write_text("old")
    with outputs.written_whole(adapter) as partial:
        partial.mkdir()
        (partial / "fresh").write_text("new")
        assert (adapter / "stale").exists()
    assert [path.name for path in adapter.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [adapter]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds list"),
        ("a: 1\nb: [1\nc: 2", r"run.yaml, line 3, column 2: is not valid YAML: expected ',' or ']'"),
        (None, "no such file"),
    ],
)
def test_broken_config_files_are_reported(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        outputs.read_config(path)
