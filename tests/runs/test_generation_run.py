"""`fit` on a task whose answer is text, on a tiny Llama: what it writes and refuses, and what the adapter generates."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sptune.cli.commands import main
from sptune.errors import InputError
from sptune.runs.run import fit, search, train
from sptune.saved_adapters.inference import evaluate, inspect, predict

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)
OPTIONS = {"task_kind": "generate", "bottleneck_dim": 4, "max_steps": 30, "batch_size": 8, "max_new_tokens": 4}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(backbone: str, adapter: Path) -> tuple[Any, PeftModel]:
    """Tokenizer and model, as a user of PEFT loads them."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(backbone), str(adapter))
    return AutoTokenizer.from_pretrained(backbone), model.eval()


@pytest.fixture(scope="module")
def prompts(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sentences of `data` as prompts, and what the story was as completions."""
    folder = tmp_path_factory.mktemp("prompts")
    files = {}
    for option, file in data.items():
        rows = [
            {"prompt": row["text"] + " the story was ", "completion": f"{row['label']} ."}
            for row in read_lines(Path(file))
        ]
        files[option] = write_lines(folder / Path(file).name, rows)
    return files


@pytest.fixture(scope="module")
def conversations(prompts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same as chat messages."""
    folder = tmp_path_factory.mktemp("conversations")
    files = {}
    for option, file in prompts.items():
        rows = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"].strip()},
                    {"role": "assistant", "content": row["completion"]},
                ]
            }
            for row in read_lines(Path(file))
        ]
        files[option] = write_lines(folder / Path(file).name, rows)
    return files


@pytest.fixture(scope="module")
def chat_lm(causal_lm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny Llama with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(causal_lm, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(prompts: dict[str, str], causal_lm: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished run on prompts and completions, which searches although its examples are few."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = {**OPTIONS, **prompts, "max_steps": 60, "learning_rate": 2e-2, "searcher": "fair", "search_steps": 5}
    return fit(**options, model=causal_lm, output_dir=folder)


@pytest.fixture(scope="module")
def chat_run(conversations: dict[str, str], chat_lm: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One finished run on chat messages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(**OPTIONS, **conversations, model=chat_lm, prompt_layers=[1], output_dir=folder)


# -- what a run reports -------------------------------------------------------------------------------------------


def test_metrics_hold_loss_perplexity_and_comparisons_of_texts(finished: Any) -> None:
    metrics = json.loads((finished.output_dir / "metrics.json").read_text())
    assert metrics == finished.metrics
    for split in ("train", "validation", "test"):
        assert metrics[split]["perplexity"] == pytest.approx(math.exp(metrics[split]["loss"]))
    assert metrics["test"]["generated_examples"] == metrics["test"]["examples"] == 24
    assert 0 <= metrics["test"]["exact_match"] <= metrics["test"]["rouge_l"] <= 1
    assert metrics["baseline"]["kind"] == "zero-shot"
    gain = metrics["baseline"]["test"]["loss"] - metrics["test"]["loss"]
    assert metrics["gain"]["test"]["loss"] == pytest.approx(gain, abs=1e-5)
    assert gain > 1
    assert metrics["parameters"]["head"] == 0
    assert metrics["training"]["best_validation_loss"] == pytest.approx(metrics["validation"]["loss"], rel=1e-4)
    assert metrics["search"]["steps"] == 5


def test_predictions_hold_prompt_completion_and_generated_text(finished: Any, prompts: dict[str, str]) -> None:
    rows = read_lines(finished.output_dir / "predictions.jsonl")
    asked = read_lines(Path(prompts["test_file"]))
    assert [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows] == asked
    matches = [row["generated"].strip() == row["completion"] for row in rows]
    assert sum(matches) / len(rows) == pytest.approx(finished.metrics["test"]["exact_match"])
    assert {row["generated"].strip() for row in rows} <= {"good .", "bad ."}  # as all completions are


def test_loss_is_that_of_completion_tokens_alone(finished: Any, prompts: dict[str, str], causal_lm: str) -> None:
    tokenizer, model = load(causal_lm, finished.adapter_dir)
    total, count = 0.0, 0
    for row in read_lines(Path(prompts["test_file"])):
        prompt, answer = tokenizer(row["prompt"]).input_ids, [*tokenizer(row["completion"]).input_ids, 3]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        total -= sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
        count += len(answer)
    assert finished.metrics["test"]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_the_adapter_evaluates_and_writes_as_the_run_did(
    finished: Any, prompts: dict[str, str], tmp_path: Path
) -> None:
    again = evaluate(finished.adapter_dir, prompts["test_file"])
    for name, value in again.items():
        assert finished.metrics["test"][name] == pytest.approx(value, rel=1e-4)
    kept = read_lines(finished.output_dir / "predictions.jsonl")
    asked = [{"question": row["prompt"]} for row in kept]
    questions = write_lines(tmp_path / "questions.jsonl", asked)
    written = predict(finished.output_dir, questions, tmp_path / "out.jsonl", prompt_column="question")
    assert written == read_lines(tmp_path / "out.jsonl")
    assert written == [{"prompt": row["prompt"], "generated": row["generated"]} for row in kept]
    short = predict(finished.output_dir, questions, prompt_column="question", max_new_tokens=1)
    assert all(len(row["generated"].split()) <= 1 for row in short)


def test_generate_uses_the_adapter(finished: Any, prompts: dict[str, str], causal_lm: str) -> None:
    row = read_lines(finished.output_dir / "predictions.jsonl")[0]
    tokenizer, model = load(causal_lm, finished.adapter_dir)
    batch = tokenizer(row["prompt"], return_tensors="pt", return_token_type_ids=False)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 3, "pad_token_id": 0}
    length = batch["input_ids"].shape[1]
    assert (
        tokenizer.decode(model.generate(**batch, **options)[0, length:], skip_special_tokens=True) == row["generated"]
    )
    with model.disable_adapter():
        bare = model.generate(**batch, **options)[0, length:]
    assert tokenizer.decode(bare, skip_special_tokens=True) != row["generated"]


@pytest.mark.parametrize("kind", ["finished", "chat_run"])
def test_model_card_shows_how_to_generate_and_its_lines_work(request: pytest.FixtureRequest, kind: str) -> None:
    run = request.getfixturevalue(kind)
    card = (run.adapter_dir / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)  # type: ignore[union-attr]
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(run.adapter_dir)), names)
    assert isinstance(names["model"], PeftModel)
    assert names["written"].shape[1] > names["batch"]["input_ids"].shape[1]
    assert "text-generation" in card
    assert f"{run.metrics['test']['loss']:.3f}" in card


def test_config_fed_back_repeats_the_run(finished: Any, tmp_path: Path) -> None:
    config = yaml.safe_load((finished.output_dir / "config.yaml").read_text())
    assert (config["task_kind"], config["prompt_column"], config["messages_column"]) == ("generate", "prompt", None)
    assert (config["max_new_tokens"], config["generated_examples"]) == (4, 200)
    again = fit(**config, output_dir=tmp_path / "again")
    assert again.metrics["test"] == finished.metrics["test"]
    resumed = fit(output_dir=str(finished.output_dir), resume=True)
    assert resumed.metrics == finished.metrics


def test_search_alone(prompts: dict[str, str], causal_lm: str, tmp_path: Path) -> None:
    options = {**prompts, "task_kind": "generate", "batch_size": 8, "search_steps": 3, "num_prompt_layers": 1}
    run = search(**options, model=causal_lm, output_dir=tmp_path / "run", searcher="spt_darts")
    assert len(run.prompt_layers) == 1


def test_prompts_in_front_of_the_text_never_see_completions(
    prompts: dict[str, str], causal_lm: str, tmp_path: Path
) -> None:
    options = {**OPTIONS, **prompts, "max_steps": 3, "placement": "prepend", "prompt_layers": [1]}
    run = train(**options, model=causal_lm, output_dir=tmp_path / "run", num_virtual_tokens=2)
    assert evaluate(run.adapter_dir, prompts["test_file"])["loss"] == pytest.approx(
        run.metrics["test"]["loss"], rel=1e-4
    )


# -- chat messages ------------------------------------------------------------------------------------------------


def test_messages_are_found_and_written_back(chat_run: Any, conversations: dict[str, str], tmp_path: Path) -> None:
    rows = read_lines(chat_run.output_dir / "predictions.jsonl")
    asked = read_lines(Path(conversations["test_file"]))
    assert [row["prompt"] for row in rows] == [row["messages"][:-1] for row in asked]
    assert [row["completion"] for row in rows] == [row["messages"][-1]["content"] for row in asked]
    open_ended = write_lines(tmp_path / "open.jsonl", [{"messages": row["prompt"]} for row in rows])
    for file in (open_ended, conversations["test_file"]):
        assert [row["generated"] for row in predict(chat_run.adapter_dir, file)] == [row["generated"] for row in rows]
    assert inspect(chat_run.adapter_dir)["task"]["messages_field"] == "messages"


def test_few_examples_and_few_generated_texts(conversations: dict[str, str], chat_lm: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "max_steps": 2, "few_shot": 6, "generated_examples": 3, "head_baseline": False}
    file = conversations["train_file"]
    run = train(**options, train_file=file, model=chat_lm, prompt_layers=[1], output_dir=tmp_path / "run")
    assert run.metrics["train"]["examples"] == 6
    assert run.metrics["validation"]["examples"] + run.metrics["test"]["examples"] <= 42
    assert len(read_lines(run.output_dir / "predictions.jsonl")) == run.metrics["test"]["generated_examples"] == 3


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["good", "bad"]}, r"labels=\['good', 'bad'\] is of tasks that predict classes.*leave it out"),
        ({"template": "{prompt} [MASK]", "label_words": {"a": "b"}}, "template=.* is of tasks that predict classes"),
        ({"text_columns": ["prompt"]}, "text_columns=.*prompt_column"),
        ({"task": "sst2"}, "task='sst2' is of tasks that predict classes"),
        ({"messages_column": "turns", "prompt_column": "prompt"}, "leave out prompt_column"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"task_kind": None, "prompt_column": "prompt"}, "add task_kind='generate'"),
    ],
)
def test_options_of_another_kind_of_task_are_refused(
    prompts: dict[str, str], causal_lm: str, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(**{**OPTIONS, **prompts, "max_new_tokens": None, **given}, model=causal_lm, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_write_are_refused(
    prompts: dict[str, str], conversations: dict[str, str], masked_lm: str, causal_lm: str, tmp_path: Path
) -> None:
    for model, files, message in (
        (masked_lm, prompts, "is of type 'bert' and cannot write text.*GPT-2, Llama or Qwen"),
        (causal_lm, conversations, "no chat template.*columns 'prompt' and 'completion'"),
    ):
        with pytest.raises(InputError, match=message):
            fit(**OPTIONS, **files, model=model, output_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_prompt_without_room_for_a_completion_is_refused_before_the_model_is_loaded(
    prompts: dict[str, str], causal_lm: str, tmp_path: Path
) -> None:
    without_weights = tmp_path / "model"
    shutil.copytree(causal_lm, without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match=r"train\.jsonl:1: the prompt alone has max_length=4 tokens or more"):
        fit(**OPTIONS, **prompts, model=str(without_weights), max_length=4, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_for_an_adapter_is_refused_with_a_remedy_that_there_is(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "film " * 50, "completion": "good"}) + "\n")
    for verb, option in (("predict", "--input"), ("evaluate", "--test-file")):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--adapter", str(finished.adapter_dir), option, str(file)])
        assert ended.value.code == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "long.jsonl:1: the prompt alone has --max-length 40 tokens or more" in told
        assert "Shorten or remove these, or train with a larger --max-length." in told  # which these commands lack


def test_columns_of_another_form_are_refused(
    finished: Any, chat_run: Any, prompts: dict[str, str], conversations: dict[str, str]
) -> None:
    for use, message in (
        (lambda: evaluate(finished.adapter_dir, prompts["test_file"], label_column="x"), "label_column='x' does not"),
        (lambda: predict(finished.adapter_dir, prompts["test_file"], messages_column="x"), "was trained on prompts"),
        (lambda: predict(chat_run.adapter_dir, conversations["test_file"], prompt_column="x"), "trained on messages"),
        (lambda: evaluate(finished.adapter_dir, conversations["test_file"]), "no line has a field 'prompt'"),
    ):
        with pytest.raises(InputError, match=message):
            use()


# -- the command line ---------------------------------------------------------------------------------------------


def test_the_command_line_does_all_of_it(
    prompts: dict[str, str], causal_lm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr().out

    files = [part for option, file in prompts.items() for part in (f"--{option.replace('_', '-')}", file)]
    adapter = str(tmp_path / "run" / "adapter")
    told = run(
        "fit", "--task-kind", "generate", "--model", causal_lm, *files, "--max-steps", "2", "--max-new-tokens", "3",
        "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert "test perplexity" in told
    assert "zero-shot" in told
    assert "ROUGE-L" in told
    assert "perplexity" in run("evaluate", "--adapter", adapter, "--test-file", prompts["test_file"])
    lines = run("predict", "--adapter", adapter, "--input", prompts["test_file"], "--max-new-tokens", "2").splitlines()
    assert set(json.loads(lines[0])) == {"prompt", "generated"}
