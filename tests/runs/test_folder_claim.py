"""A run's claim on its output folder, which others may remove or take."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from sptune.errors import InputError, SptuneError
from sptune.runs.folder_claim import claim_folder


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".partial-adapter").mkdir()
    (tmp_path / ".partial-adapter" / "half").write_text("x")
    claim_folder(tmp_path, resume=False, overwrite=False).end()
    assert list(tmp_path.iterdir()) == []


def test_a_claimed_folder_is_not_claimed_again(tmp_path: Path) -> None:
    claim = claim_folder(tmp_path, resume=False, overwrite=False)
    with pytest.raises(InputError, match="another run is writing"):
        claim_folder(tmp_path, resume=False, overwrite=False)
    claim.check()
    claim.end()
    claim_folder(tmp_path, resume=False, overwrite=False).end()


@pytest.mark.parametrize("next_came", [False, True])
def test_a_lock_file_that_the_run_before_removes_meanwhile_is_not_the_folders(
    next_came: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, calls = FileLock.acquire, []

    def acquire_late(lock: FileLock) -> None:
        acquire(lock)
        calls.append(lock)
        if len(calls) == 1:
            Path(lock.lock_file).unlink()
            if next_came:
                Path(lock.lock_file).touch()

    monkeypatch.setattr(FileLock, "acquire", acquire_late)
    claim = claim_folder(tmp_path, resume=False, overwrite=False)
    with pytest.raises(InputError, match="another run is writing"):
        claim_folder(tmp_path, resume=False, overwrite=False)
    claim.check()
    claim.end()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_was_removed_leaves_the_next_one_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = claim_folder(folder, resume=False, overwrite=False)
    shutil.rmtree(folder)
    with pytest.raises(SptuneError, match="removed or moved"):
        first.check()
    second = claim_folder(folder, resume=False, overwrite=False)
    with pytest.raises(SptuneError, match="removed or moved"):
        first.check()
    first.end()
    second.check()
    with pytest.raises(InputError, match="another run is writing"):
        claim_folder(folder, resume=False, overwrite=False)
    second.end()
    assert list(folder.iterdir()) == []
