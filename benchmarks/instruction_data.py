"""Makes instruction data from labeled data: chat messages whose answer is a sentence, not a class.

    python benchmarks/instruction_data.py --data data --output runs/instruction-data

`--data` contains one folder per task (trec, mr), each with train.jsonl, whose fields are text and label. Two kinds of
conversations are written, as many of each, in the same files:

- a question (TREC) and what it asks for, in words;
- a movie review (MR) and a verdict of one word, followed by a sentence of fixed form that quotes the review's end.

The output has train.jsonl, validation.jsonl and test.jsonl with a column "messages", which `sptune fit --task-kind
generate` takes. The seed draws the examples and their order.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

from sptune.runs.output_folder import read_json_lines, write_json_lines

SYSTEM = "Be brief."  # instead of the longer one of the chat template
ANSWERS = {
    "description": "A description or a reason.",
    "entity": "A thing, such as an animal or a book.",
    "abbreviation": "What letters stand for.",
    "human": "A person or a group.",
    "location": "A place.",
    "number": "A number or a date.",
}
QUESTION = "What does this question ask for? {text}"
REVIEW = "Is this review good or bad? {text}"
VERDICTS = {"positive": 'Good. It ends with "{end}".', "negative": 'Bad. It ends with "{end}".'}
SIZES = {"train": 500, "validation": 100, "test": 200}


def conversation(task: str, text: str, label: str) -> dict[str, list[dict[str, str]]]:
    """One example of a task as chat messages."""
    if task == "trec":
        instruction, answer = QUESTION.format(text=text), ANSWERS[label]
    else:
        end = " ".join(re.findall(r"[\w'-]+", text)[-3:])
        instruction, answer = REVIEW.format(text=text), VERDICTS[label].format(end=end)
    turns = (("system", SYSTEM), ("user", instruction), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_conversations(data: Path, output: Path, seed: int = 0) -> dict[str, str]:
    """Write the files; returns them as options of a run."""
    drawn: list[list[dict[str, list[dict[str, str]]]]] = []
    for task in ("trec", "mr"):
        rows = {row["text"]: row["label"] for row in read_json_lines(data / task / "train.jsonl")}
        texts = sorted(rows)
        random.Random(seed).shuffle(texts)
        drawn.append([conversation(task, text, rows[text]) for text in texts[: sum(SIZES.values()) // 2]])
    mixed = [one for pair in zip(*drawn, strict=True) for one in pair]
    files, start = {}, 0
    for name, size in SIZES.items():
        path = output / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, mixed[start : start + size])
        files[f"{name}_file"] = str(path)
        start += size
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one folder per task")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(write_conversations(given.data, given.output, given.seed)))


if __name__ == "__main__":
    main()
