"""The script in `examples` runs, on fewer reviews and for fewer steps."""

import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "own_loop.py"
SHORTER = {r"arguments\(\d\d+\)": "arguments(2)", r"reviews\[:3000\]": "reviews[:60]", r"2000": "40", r"3000": "60"}


def test_the_script_searches_trains_saves_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = SCRIPT.read_text(encoding="utf-8")
    for pattern, shorter in SHORTER.items():
        script, count = re.subn(pattern, shorter, script)
        assert count, pattern
    exec(compile(script, str(SCRIPT), "exec"), {})
    told = capsys.readouterr().out
    assert "prompt layers: [" in told
    assert "test accuracy: 0." in told
    assert Path("runs/example/adapter/adapter_config.json").exists()
