"""A real causal model from its GGUF file, with label words and writing text: from data to what it generates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sptune.runs.run import fit, train
from sptune.saved_adapters.adapter_pool import AdapterPool
from sptune.saved_adapters.inference import predict

REVIEWS = [
    ("a warm and funny film", "positive"),
    ("dull from the first scene to the last", "negative"),
    ("the actors are superb", "positive"),
    ("a waste of two hours", "negative"),
    ("tender , clever and moving", "positive"),
    ("the jokes fall flat", "negative"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, smollm2_file: Path) -> Any:
    folder = tmp_path_factory.mktemp("gguf")
    for name in ("train", "validation", "test"):
        rows = [json.dumps({"text": text, "label": label}) for text, label in REVIEWS]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return fit(
        gguf_file=str(smollm2_file),
        task="sst2",
        **{f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation", "test")},
        output_dir=folder / "run",
        candidate_layers=[24, 28],
        num_prompt_layers=1,
        search_steps=2,
        max_steps=4,
        batch_size=3,
    )


def test_fit_runs_end_to_end(run: Any) -> None:
    metrics = run.metrics
    assert metrics["baseline"]["kind"] == "zero-shot"
    assert metrics["prompt_layers"][0] in (24, 28)
    assert metrics["parameters"]["head"] == 0
    assert metrics["parameters"]["total"] > 134_000_000


def test_adapter_loads_and_generates_with_cache_batch_and_left_padding(run: Any) -> None:
    pool = AdapterPool(run.adapter_dir)
    tokenizer = pool.tokenizer
    tokenizer.padding_side = "left"
    texts = [f"{text} . It was" for text in ("a warm and funny film", "dull")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    cached = pool.model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, pool.model.generate(**batch, **options, use_cache=False))
    alone = tokenizer(texts[1], return_tensors="pt")
    alone.pop("token_type_ids", None)
    single = pool.model.generate(**alone, **options)
    assert torch.equal(cached[1, -4:], single[0, -4:])


def test_a_chat_model_learns_to_answer_in_one_word(tmp_path: Path, smollm2_file: Path) -> None:
    def chat(text: str, label: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Good or bad? {text}"}, {"role": "assistant", "content": label}]

    rows = [json.dumps({"messages": chat(text, label)}) for text, label in REVIEWS]
    files = {}
    for name in ("train", "validation", "test"):
        files[f"{name}_file"] = str(tmp_path / f"{name}.jsonl")
        Path(files[f"{name}_file"]).write_text("\n".join(rows), encoding="utf-8")
    run = train(
        **files,
        gguf_file=str(smollm2_file),
        task_kind="generate",
        output_dir=tmp_path / "run",
        prompt_layers=[26, 28],
        max_steps=12,
        batch_size=6,
        max_new_tokens=4,
    )
    metrics = run.metrics
    assert metrics["test"]["loss"] < metrics["baseline"]["test"]["loss"] / 2
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": chat(*REVIEWS[0])[:1]}), encoding="utf-8")
    (row,) = predict(run.adapter_dir, tmp_path / "asked.jsonl")
    assert row["generated"] in ("positive", "negative")
