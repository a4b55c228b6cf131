"""The parts of a model card that depend on the kind of task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sptune.tasks import Task
from sptune.tasks.generation_task import GenerationTask

LANGUAGE_MODELS = {"masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM"}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class CardParts:
    """What a model card says of the task.

    Attributes:
        pipeline: the hub's name for what the model does.
        input_form: what goes in and comes out.
        scores: a Markdown table.
        usage: lines of Python that use `model` and `tokenizer`.
        input_file: a file for `sptune predict`, as an example.
    """

    pipeline: str
    input_form: str
    scores: str
    usage: str
    input_file: str


def class_parts(task: Task, base: dict[str, Any], metrics: dict[str, Any]) -> CardParts:
    """The parts for text classification.

    Args:
        task: the task.
        base: the backbone's description, as task.json keeps it.
        metrics: what the run measured.
    """
    template = task.causal_template or task.template if base["head"] == "causal_lm" else task.template
    if template and task.label_words:
        words = [f"{label} = {word}" for label, word in zip(task.labels, task.label_words, strict=True)]
        form = f"Input form: `{template}`; label words: {', '.join(words)}"
    else:
        form = f"Classes, in the order of the logits: {', '.join(task.labels)}"
    usage = _head_usage(task, base, "print(model.config.id2label[int(model(**batch).logits.argmax())])")
    return CardParts("text-classification", form, _score_table(metrics, ["accuracy"]), usage, "texts.jsonl")


def label_parts(task: Task, base: dict[str, Any], metrics: dict[str, Any]) -> CardParts:
    """The parts for several labels; see `class_parts`."""
    form = (
        f"Any number of labels for each text, in the order of the logits: {', '.join(task.labels)}. A label is "
        f"predicted if its probability, the sigmoid of its logit, is at least {task.threshold:g}"
    )
    usage = f"""probabilities = model(**batch).logits[0].sigmoid().tolist()
print([model.config.id2label[i] for i, probability in enumerate(probabilities) if probability >= {task.threshold!r}])"""
    table = _score_table(metrics, ["micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"])
    rows = [
        f"| {label} | {_written(own['precision'])} | {_written(own['recall'])} | {own['f1']:.3f} | "
        f"{_written(own['average_precision'])} | {own['examples']:,} |"
        for label, own in metrics["test"]["labels"].items()
    ]
    titles = "| label, on test data | precision | recall | F1 | average precision | examples with it |"
    scores = "\n".join([table, "", titles, "|---|---|---|---|---|---|", *rows])
    return CardParts("text-classification", form, scores, _head_usage(task, base, usage), "texts.jsonl")


def number_parts(task: Task, base: dict[str, Any], metrics: dict[str, Any]) -> CardParts:
    """The parts for a number; see `class_parts`."""
    form = (
        f"A number for each text ({task.label_field}): {task.target_mean:g} + {task.target_std:g} times the logit, "
        "which are the mean and the standard deviation of the training data"
    )
    usage = f"print({task.target_mean!r} + {task.target_std!r} * model(**batch).logits.item())"
    table = _score_table(metrics, ["r2", "rmse", "mae", "pearson", "spearman"])
    return CardParts("text-classification", form, table, _head_usage(task, base, usage), "texts.jsonl")


def _head_usage(task: Task, base: dict[str, Any], code: str) -> str:
    """Python code that runs a head on one text; empty where the input is not one text."""
    if base["head"] in LANGUAGE_MODELS or len(task.text_fields) > 1:
        return ""
    return f"""
batch = tokenizer(["A text."], return_tensors="pt")
{code}
"""


def _score_table(metrics: dict[str, Any], names: list[str]) -> str:
    """Metrics by split as a Markdown table."""
    titles = ["data", *(name.replace("_", " ").replace("r2", "R²").replace("f1", "F1") for name in names), "examples"]
    rows = [
        [split, *(_written(metrics[split][name]) for name in names), f"{metrics[split]['examples']:,}"]
        for split in SPLITS
    ]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace(" --- ", "---") for line in lines)


def _written(value: float | None) -> str:
    """A metric as text, and a dash where it is not defined."""
    return "–" if value is None else f"{value:.3f}"


def text_parts(task: GenerationTask, max_new_tokens: int, metrics: dict[str, Any]) -> CardParts:
    """The parts for writing text.

    Args:
        task: the task.
        max_new_tokens: the maximum length of a text in tokens.
        metrics: what the run measured.
    """
    form, prompt = "Prompts as plain text, followed by their completions", 'tokenizer("A prompt.", return_tensors="pt")'
    if task.is_chat:
        form = "Conversations in the form of the tokenizer's chat template"
        prompt = """tokenizer.apply_chat_template(
    [{"role": "user", "content": "A prompt."}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
    usage = f"""
batch = {prompt}
batch.pop("token_type_ids", None)
written = model.generate(**batch, max_new_tokens={max_new_tokens}, do_sample=False, eos_token_id=tokenizer.eos_token_id)
print(tokenizer.decode(written[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
"""
    rows = [
        f"| {name} | {metrics[name]['loss']:.3f} | {metrics[name]['perplexity']:.2f} | {metrics[name]['examples']:,} |"
        for name in SPLITS
    ]
    test = metrics["test"]
    scores = "\n".join(["| data | loss per token | perplexity | examples |", "|---|---|---|---|", *rows])
    scores += (
        f"\n\nOf {test['generated_examples']:,} generated texts {test['exact_match']:.1%} match exactly; "
        f"ROUGE-L {test['rouge_l']:.3f}."
    )
    return CardParts("text-generation", form, scores, usage, "prompts.jsonl")
