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
    usage = ""
    if base["head"] not in LANGUAGE_MODELS and len(task.text_fields) == 1:
        usage = """
batch = tokenizer(["A text."], return_tensors="pt")
print(model.config.id2label[int(model(**batch).logits.argmax())])
"""
    rows = [f"| {name} | {metrics[name]['accuracy']:.3f} | {metrics[name]['examples']:,} |" for name in SPLITS]
    scores = "\n".join(["| data | accuracy | examples |", "|---|---|---|", *rows])
    return CardParts("text-classification", form, scores, usage, "texts.jsonl")


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
