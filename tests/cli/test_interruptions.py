"""What a run leaves when the system ends it: a message, whole files, and a run that goes on to the same result."""

import ctypes
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from sptune.cli.app import running
from sptune.cli.commands import main
from sptune.cli.system_errors import in_words

STEPS = ["--searcher", "fair", "--search-steps", "4", "--max-steps", "40", "--no-linear-probe"]
FILE_LIMIT = 12_000
# Linux's numbers for taking a right from a process and its children: that to write where no permission allows it.
DROP_FROM_BOUNDING_SET, IGNORE_PERMISSIONS = 24, 1
# A command that may use only a little more memory than its libraries do.
LIMITED = """
import resource, sys
from pathlib import Path
import sptune.runs.run
from sptune.cli.commands import main
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def command(data: dict[str, str], masked_lm: str) -> list[str]:
    """`sptune fit` on the tiny BERT, without --output."""
    files = [part for name, value in data.items() for part in ("--" + name.replace("_", "-"), value)]
    tiny = ["--bottleneck-dim", "4", "--batch-size", "8"]
    return [sys.executable, "-m", "sptune", "fit", "--model", masked_lm, *files, *tiny, *STEPS]


@pytest.fixture(scope="module")
def whole(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([*command, "--output", str(folder)], check=True, capture_output=True)
    return folder


def resume(folder: Path) -> None:
    """Continue a run, and find nothing left over."""
    done = subprocess.run(
        [sys.executable, "-m", "sptune", "fit", "--output", str(folder), "--resume"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in folder.rglob("*") if "partial" in path.name or path.name.endswith(".lock")]


def assert_same_result(folder: Path, whole: Path) -> None:
    assert (folder / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()
    found, expected = (json.loads((one / "metrics.json").read_text()) for one in (folder, whole))
    assert found["test"] == expected["test"]
    assert found["prompt_layers"] == expected["prompt_layers"]


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 143, "Terminated"), (signal.SIGKILL, -9, "")])
def test_a_signal_loses_nothing(
    number: int, code: int, word: str, command: list[str], whole: Path, tmp_path: Path
) -> None:
    for attempt in range(5):  # on a busy machine the run can end before the signal arrives
        folder = tmp_path / f"run{attempt}"
        process = subprocess.Popen([*command, "--output", str(folder)], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any("Training prompts" in line for line in process.stderr)
        process.send_signal(number)
        told = process.stderr.read()
        if process.wait(timeout=60) != 0:
            break
    assert process.returncode == code
    assert word in told
    assert "Traceback" not in told
    resume(folder)
    assert_same_result(folder, whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_told_by_its_exit_code_if_a_library_raises_its_own_interrupt(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Ray does."""

    def call_library() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(typer.Exit) as left, running():
        call_library()
    assert left.value.exit_code == code
    assert {130: "Interrupted", 143: "Terminated"}[code] in capsys.readouterr().err


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    command: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [*command, "--output", str(folder)], preexec_fn=_limit_files, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    assert f"--output {folder} --resume" in " ".join(done.stderr.split())
    resume(folder)
    assert_same_result(folder, whole)


def test_a_second_run_on_a_folder_is_refused(command: list[str], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen([*command, "--output", str(folder)], stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    assert any("Searching" in line or "Taking" in line for line in first.stderr)
    first.send_signal(signal.SIGSTOP)
    for option in ("--resume", "--overwrite"):
        second = subprocess.run([*command, "--output", str(folder), option], capture_output=True, text=True)
        assert second.returncode == 2
        assert "another run is writing into this folder" in second.stderr
    first.send_signal(signal.SIGCONT)
    first.stderr.read()
    assert first.wait(timeout=60) == 0
    assert_same_result(folder, whole)


def test_a_moved_folder_is_resumed(command: list[str], whole: Path, tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    process = subprocess.Popen([*command, "--output", str(first)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("Evaluating" in line for line in process.stderr)
    process.kill()
    process.wait(timeout=60)
    shutil.move(first, moved)
    resume(moved)
    assert_same_result(moved, whole)


def _obey_permissions() -> None:
    """As root, too."""
    ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, IGNORE_PERMISSIONS, 0, 0, 0)


def test_a_read_only_folder_is_refused(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o555)
    done = subprocess.run(
        [*command, "--output", str(folder)], preexec_fn=_obey_permissions, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"{folder}: cannot be written to (Permission denied)" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("verb", ["fit", "compare"])
@pytest.mark.parametrize("place", ["/proc", "/proc/run", "{folder}/file/run", "{folder}/file"])
def test_a_place_that_holds_no_folder_is_refused(
    verb: str, place: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    output = place.format(folder=tmp_path)
    options = command[command.index("--model") :]
    given = options if verb == "fit" else [*options[: options.index("--bottleneck-dim")], "--methods", "linear-probe"]
    with pytest.raises(SystemExit) as left:
        main([verb, *given, "--output", output])
    assert left.value.code == 2
    assert f"{output}: " in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", ["fit", "compare"])
def test_a_folder_that_is_removed_ends_the_run_and_does_not_come_back(
    verb: str, command: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    if verb == "fit":
        command, begun = [*command, "--max-steps", "4000"], "Training prompts"
    else:
        shared = command[: command.index("--bottleneck-dim")]
        shared[shared.index("fit")] = "compare"
        seeds = ",".join(map(str, range(200)))
        command, begun = [*shared, "--methods", "linear-probe", "--seeds", seeds, "--max-steps", "20"], "runs ended"
    process = subprocess.Popen([*command, "--output", str(folder)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any(begun in line for line in process.stderr)
    folder.rename(tmp_path / "removed")
    shutil.rmtree(tmp_path / "removed")
    told = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert f"{folder}: was removed or moved" in told
    assert "Traceback" not in told
    assert not folder.exists()


@pytest.mark.parametrize("megabytes", [0, 32])
def test_too_little_memory_is_told(megabytes: int, command: list[str], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [str(megabytes), *command[command.index("fit") :], "--output", str(folder)]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "memory" in done.stderr
    assert "(ulimit -v" in done.stderr
    # The command that continues the run is told where there is a run.
    assert ("--resume" in done.stderr) is (folder / "config.yaml").exists()
    if (folder / "config.yaml").exists():
        resume(folder)
        assert_same_result(folder, whole)


def test_a_clock_that_jumps_changes_nothing(
    command: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, jumps = time.time, itertools.cycle((0, -86_400, 3_600))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    with pytest.raises(SystemExit) as left:
        main([*command[command.index("fit") :], "--output", str(tmp_path / "run")])
    assert left.value.code == 0
    assert_same_result(tmp_path / "run", whole)
    seconds = json.loads((tmp_path / "run" / "metrics.json").read_text())["seconds"]
    assert all(0 <= value < 3_600 for value in seconds.values())


def test_a_run_goes_on_whatever_the_dates_of_its_files(command: list[str], whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([*command, "--output", str(folder)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("Evaluating" in line for line in process.stderr)
    process.kill()
    process.wait(timeout=60)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        then = (0, 4_000_000_000)[number % 2]  # 1970, and a time to come
        os.utime(path, (then, then))
    resume(folder)
    assert_same_result(folder, whole)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "/data/run"), "/data/run: No space left on device."),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), "Is the disk full?"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "Out of memory; choose a smaller"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "Out of memory; choose a smaller"),
        (MemoryError(), "Out of memory; choose a smaller"),
        (OSError(12, "Cannot allocate memory", "model.safetensors"), "Out of memory; choose a smaller"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "Out of memory; choose a smaller"),
        (RuntimeError("can't start new thread"), "The system starts no more threads"),
    ],
)
def test_errors_of_the_system_are_told_in_words(error: Exception, told: str) -> None:
    assert told in str(in_words(error))


def test_other_errors_are_not(command: list[str]) -> None:
    other: Any = ValueError("something else")
    assert in_words(other) is None
