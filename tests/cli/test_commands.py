"""The command line: exit codes, what goes to which stream, --json, --config, Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sptune
from sptune.cli.commands import main
from sptune.cli.terminal import print_run
from sptune.errors import InputError
from sptune.runs.run import Run
from sptune.serve.server import serving

TINY = ["--bottleneck-dim", "4", "--batch-size", "8"]


def flags(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("--" + name.replace("_", "-"), value)]


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a call."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: dict[str, str], masked_lm: str) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    steps = ["--search-steps", "4", "--max-steps", "6"]
    with pytest.raises(SystemExit) as left:
        main(["fit", "--model", masked_lm, *flags(data), *TINY, *steps, "--output", str(folder)])
    assert not left.value.code
    return folder


def test_fit_prints_layers_gates_and_both_scores(
    data: dict[str, str], masked_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--searcher", "fair", "--search-steps", "4", "--max-steps", "6", "--num-prompt-layers", "1"]
    code, out, err = call(
        ["fit", "--model", masked_lm, *flags(data), *TINY, *steps, "--output", str(tmp_path / "run")], capsys
    )
    assert code == 0
    for shown in ("Prompt layers", "chosen", "linear probe", "gain", "Adapter"):
        assert shown in out
    assert "Searching for the prompt layers" in err
    (remark,) = json.loads((tmp_path / "run" / "search.json").read_text())["remarks"]
    assert (out.count(remark), err.count(remark)) == (1, 0)


def test_what_there_is_to_know_about_the_choice_stands_with_the_result(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notes of the search are far up the screen when the training is done."""
    (remark,) = json.loads((run / "search.json").read_text())["remarks"]
    # Three layers are fewer than the four that a search takes.
    assert remark == "All candidate layers (0 to 2) get a prompt, so there is nothing to search."
    _, out, _ = call(["fit", "--resume", "--output", str(run)], capsys)
    assert remark in out


def test_few_right_answers_are_no_certainty(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"] |= {"accuracy": 1.0, "examples": 12}
    print_run(Run(tmp_path, metrics, [1]), as_json=False)
    # The lower end of Wilson's interval where all are right: n / (n + z²).
    assert f"{12 / (12 + 1.959964**2):.4f} to 1.0000" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--version"], capsys)[:2] == (0, f"sptune {sptune.__version__}\n")


def test_json_is_all_that_goes_to_standard_output(
    run: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(["fit", "--resume", "--output", str(run), "--json"], capsys)
    result = json.loads(out)
    assert code == 0
    assert result == {
        "output_dir": str(run), "adapter_dir": str(run / "adapter"),
        **json.loads((run / "metrics.json").read_text()),
    }  # fmt: skip
    code, out, _ = call(
        ["evaluate", "--adapter", str(run / "adapter"), "--test-file", data["test_file"], "--json"], capsys
    )
    assert code == 0
    assert json.loads(out) == result["test"]
    code, out, _ = call(["inspect", "--adapter", str(run), "--json"], capsys)
    assert json.loads(out)["prompt_layers"] == result["prompt_layers"]


def test_predict_writes_a_file_or_prints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("review\na lovely film\na dull film\n")
    arguments = ["predict", "--adapter", str(run / "adapter"), "--input", str(texts), "--text-column", "review"]
    code, out, _ = call(arguments, capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["review"] for row in rows] == ["a lovely film", "a dull film"]
    assert set(rows[0]["scores"]) == {"good", "bad"}
    code, out, _ = call([*arguments, "--output", str(tmp_path / "predictions.jsonl")], capsys)
    assert [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == rows
    assert "2 predictions" in out


def test_the_users_folder_stands_for_its_sign(
    run: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = run.parent
    monkeypatch.setenv("HOME", str(home))
    (home / "texts.jsonl").write_text(Path(data["test_file"]).read_text())
    adapters = ["--adapter", "~/run", "--adapter", "b=~/run"]
    call(["predict", *adapters[:2], "--input=~/texts.jsonl", "--output=~/new/out.jsonl"], capsys)
    assert len((home / "new" / "out.jsonl").read_text().splitlines()) == 24
    code, _, err = call(["predict", *adapters, "--input=~/texts.jsonl", "--output=~/new/2.jsonl"], capsys)
    assert (code, "no column says which row is for which" in err) == (2, True)  # both are found
    assert call(["inspect", "--adapter=~/run"], capsys)[0] == 0
    code, _, err = call(["fit", "--config=~/run/config.yaml", "--output=~/run"], capsys)
    assert (code, f"{home / 'run'}: holds a run already" in err) == (2, True)
    code, _, err = call(["fit", "--model=m", "--train-file=~/none.csv", "--output=~/other"], capsys)
    assert (code, f"{home / 'none.csv'}: no such file" in err) == (2, True)
    with pytest.raises(InputError, match=r"root='/.*none': there is no such folder"), serving([], root=Path("~/none")):
        pass


def test_config_is_read_and_the_command_line_goes_before_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(
        ["train", "--config", str(run / "config.yaml"), "--prompt-layers", "0,2", "--max-steps", "4",
         "--no-linear-probe", "--output", str(tmp_path / "again"), "--json"], capsys,
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert result["prompt_layers"] == [0, 2]
    assert result["training"]["steps"] == 4
    assert "baseline" not in result


def test_a_file_of_options_is_not_replaced_by_the_run_that_takes_them(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "config.yaml").read_text()
    code, _, err = call(["fit", "--config", str(run / "config.yaml"), "--output", str(run), "--overwrite"], capsys)
    assert code == 2
    assert "config.yaml: would be removed with the run" in " ".join(err.split())
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--output", "{folder}"], "model is missing"),
        (["fit", "--no-such-option"], "No such option"),
        (["fit", "--batch-size", "many"], "'many' is not a whole number"),
        (["fit", "--learning-rate", "fast"], "'fast' is not a number"),
        (["fit", "--generator", "magic", "--output", "{folder}"], "Error: --generator 'magic' is not allowed"),
        (["fit", "--learning-rate", "-1"], "--learning-rate -1.0 is not allowed"),
        (
            ["fit", "--num-prompt-layers", "2", "--threshold", "0.5"],
            "--num-prompt-layers 2, --threshold 0.5; give at most one",
        ),
        (["fit", "--template", "{text} [MASK]"], "given without --label-word"),
        (["fit", "--config", "{folder}/missing.yaml"], "no such file"),
        (["fit", "--model", "m", "--train-file", "{folder}/missing.csv", "--output", "{folder}/o"], "missing.csv"),
        (["train", "--prompt-layers", "three"], "indices such as 3,5"),
        (["fit", "--label-word", "great"], "positive=great"),
        (["evaluate", "--adapter", "{folder}", "--test-file", "x.jsonl"], "holds no adapter"),
        (["inspect", "--adapter", "{folder}/none"], "there is no such folder"),
        (["serve", "{folder}", "--root", "{folder}/none"], "Error: --root"),
        (["search"], "model is missing, and so are the data"),
        (["search", "--model", "m"], "--output is missing"),
    ],
)
def test_wrong_input_leaves_with_2_and_says_why(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call([part.replace("{folder}", str(tmp_path)) for part in arguments], capsys)
    assert code == 2
    assert message in " ".join(err.replace("│", "").split())
    assert out == ""


def test_the_users_own_words_are_not_taken_for_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.csv"
    file.write_text("max_length,stars\nfine,1\ndull,2\n")
    _, _, err = call(
        ["fit", "--model", "m", "--train-file", str(file), "--text-column", "batch_size", "--output", "o"], capsys
    )
    assert "'batch_size'" in err
    assert "--text-column" in err


def test_failed_run_leaves_with_1(
    data: dict[str, str], masked_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ["--learning-rate", "1e30", "--head-learning-rate", "1e30", "--no-linear-probe"]
    code, _, err = call(
        ["train", "--model", masked_lm, *flags(data), *TINY, *rates, "--max-steps", "4", "--prompt-layers", "all",
         "--output", str(tmp_path / "run")], capsys,
    )  # fmt: skip
    assert code == 1
    assert "Training diverged" in err


def test_tasks_and_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(["tasks", "--json"], capsys)
    assert code == 0
    assert len(json.loads(out)) == 10
    code, out, _ = call(["tasks"], capsys)
    assert code == 0
    assert "negative: terrible, positive: great" in out  # nothing is folded in a pipe
    code, out, _ = call(["models", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["llama"]["attention"] == "causal"
    code, out, _ = call(["models"], capsys)
    assert code == 0
    assert "--placement add, also takes other" in out


def test_ctrl_c_says_how_to_continue_and_continuing_works(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    steps = ["--searcher", "fair", "--search-steps", "200", "--max-steps", "4", "--no-linear-probe"]
    command = [sys.executable, "-m", "sptune", "fit", "--output", str(folder)]
    process = subprocess.Popen(
        [*command, "--model", masked_lm, *flags(data), *TINY, *steps, "--keep-checkpoints", "--no-activation-cache"],
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have been told to ignore Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert any("Searching" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    process.wait(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert f"sptune fit --output {folder} --resume --keep-checkpoints --no-activation-cache" in " ".join(err.split())
    again = subprocess.run([*command, "--resume", "--json"], check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(again.stdout)
    assert result["search"]["steps"] == 200
    assert not (folder / "checkpoints").exists()


def test_the_command_that_continues_has_what_the_folder_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "run", tmp_path / "options.yaml"
    folder.mkdir()
    file.write_text(
        "model: bert\nprompt_layers: [1]\nreport_to: [tensorboard, mlflow]\npush_to_hub: me/films\nhub_private: true\n"
        "keep_checkpoints: false\nactivation_cache: false\n"
    )

    def interrupted(**options: Any) -> None:
        (folder / "config.yaml").write_text("command: train\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("sptune.runs.run.train", interrupted)
    code, _, err = call(["train", "--config", str(file), "--output", str(folder), "--keep-checkpoints"], capsys)
    assert code == 130
    again = (
        f"train --output {folder} --resume --report-to tensorboard --report-to mlflow --push-to-hub me/films "
        "--hub-private --keep-checkpoints --no-activation-cache\n"
    )
    assert again in err


def test_a_run_that_was_not_replaced_yet_is_not_what_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "config.yaml").write_text("command: train\n")
    monkeypatch.setattr("sptune.runs.run.train", interrupted)
    command = ["train", "--model", "bert", "--prompt-layers", "1", "--output", str(tmp_path)]
    for option, is_told in (("--overwrite", False), ("--resume", True)):
        code, _, err = call([*command, option], capsys)
        assert code == 130
        assert ("Continue with: " in err) is is_told


def test_characters_that_a_stream_cannot_write_are_spelled_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, output = tmp_path / "texts.csv", tmp_path / "prédictions.jsonl"
    texts.write_text("text\nun film d'été\n", encoding="utf-8")
    written = []
    for options in ([], ["--output", str(output)], ["--output", str(output), "--overwrite", "--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as left:
            main(["predict", "--adapter", str(run / "adapter"), "--input", str(texts), *options])
        assert not left.value.code
        stream.flush()
        written.append(stream.buffer.getvalue().decode())
    row, told, summary = written
    assert json.loads(row)["text"] == "un film d'été"
    assert "pr\\xe9dictions.jsonl" in told
    assert json.loads(summary)["output"] == str(output)


def test_accelerate_starts_it_as_a_module() -> None:
    script = Path(sys.executable).with_name("accelerate")
    done = subprocess.run(
        [str(script), "launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
         "--dynamo_backend", "no", "-m", "sptune", "fit", "--model", "x"], capture_output=True, text=True,
    )  # fmt: skip
    assert "--output is missing" in done.stderr
    assert done.returncode != 0


def test_two_processes_share_a_run(data: dict[str, str], masked_lm: str, tmp_path: Path) -> None:
    """As `accelerate launch` starts them; the result is printed once."""
    steps = ["--searcher", "fair", "--search-steps", "4", "--max-steps", "6", "--num-prompt-layers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sptune", "fit",
         "--model", masked_lm, *flags(data), *TINY, *steps, "--output", str(tmp_path / "run"), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert len(result["prompt_layers"]) == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] == result["test"]
    assert done.stderr.count("Searching for the prompt layers") == 1


def test_a_command_leaves_the_processes_it_shared(
    run: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch may abort a process that ends in a process group."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    code, _, _ = call(
        ["evaluate", "--adapter", str(run / "adapter"), "--test-file", data["test_file"], "--json"], capsys
    )
    assert code == 0
    assert not torch.distributed.is_initialized()
