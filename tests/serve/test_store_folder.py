"""Folders of stores: each server has its own, and removes those that killed servers left."""

import tempfile
from pathlib import Path

import pytest

from sptune.serve.adapter_store import OWNER_FILE, store_folder


def test_folders_of_ended_servers_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, other, linked = (tmp_path / f"sptune-serve-{name}" for name in ("left", "other", "linked"))
    (tmp_path / "mine").mkdir()
    for folder in (left, other):
        folder.mkdir()
    linked.symlink_to(tmp_path / "mine")
    for folder in (left, tmp_path / "mine"):
        (folder / OWNER_FILE).touch()
    with store_folder() as first:
        assert not left.exists()
        with store_folder() as second:
            assert first.is_dir()
            assert second.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", other.name, linked.name}
    assert (tmp_path / "mine" / OWNER_FILE).exists()
