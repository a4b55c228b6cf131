"""The model card of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LANGUAGE_MODELS = {"masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM"}


def model_card(base: dict[str, Any], load: str, tokenizer: str, task: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The adapter's README.md: what it is, what it scored, and how to load it.

    Args:
        base: the backbone's description, as task.json keeps it.
        load: the Python expression that loads the backbone.
        tokenizer: the one that loads its tokenizer.
        task: the task, as task.json keeps it.
        metrics: what the run measured.
    """
    rows = "\n".join(_row(name, metrics) for name in ("train", "validation", "test"))
    return f"""---
{_front_matter(base)}
---

# {task["name"]}: selective prompts for {Path(base["model"]).name}

An adapter for `{base["model"]}`: soft prompts at layers {", ".join(map(str, metrics["prompt_layers"]))}, made by
Selective Prompt Tuning with sptune. The backbone is frozen; {metrics["parameters"]["trainable"]:,} \
parameters were trained.

{_input_form(base, task)}.

| data | accuracy | examples |
|---|---|---|
{rows}

## Use

```python
import sptune  # makes SPT known to PEFT
from peft import PeftModel
{_imports(base)}
backbone = {load}
model = PeftModel.from_pretrained(backbone, "path/to/this/folder").eval()
tokenizer = {tokenizer}
{_scoring(base, task)}```

Without `import sptune` PEFT says `KeyError: 'SPT'`.

Or from the shell: `sptune predict --adapter path/to/this/folder --input texts.jsonl --output predictions.jsonl`
"""


def _row(name: str, metrics: dict[str, Any]) -> str:
    return f"| {name} | {metrics[name]['accuracy']:.3f} | {metrics[name]['examples']:,} |"


def _front_matter(base: dict[str, Any]) -> str:
    is_hub_id = not Path(base["model"]).is_absolute()
    front = {
        **({"base_model": base["model"]} if is_hub_id else {}),
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["sptune", "prompt-tuning", "selective-prompt-tuning"],
    }
    return yaml.safe_dump(front, sort_keys=False).strip()


def _imports(base: dict[str, Any]) -> str:
    if base["pooling"] == "mean":
        return "from transformers import AutoTokenizer\n\nfrom sptune import MeanPooledClassifier\n"
    loader = LANGUAGE_MODELS.get(base["head"], "AutoModelForSequenceClassification")
    return f"from transformers import {loader}, AutoTokenizer"


def _scoring(base: dict[str, Any], task: dict[str, Any]) -> str:
    """The lines that classify a text, for a classifier of single texts."""
    if base["head"] in LANGUAGE_MODELS or len(task["text_fields"]) != 1:
        return ""
    return """
batch = tokenizer(["A text."], return_tensors="pt")
print(model.config.id2label[int(model(**batch).logits.argmax())])
"""


def _input_form(base: dict[str, Any], task: dict[str, Any]) -> str:
    template = task["causal_template"] or task["template"] if base["head"] == "causal_lm" else task["template"]
    if not template:
        return f"Classes, in the order of the logits: {', '.join(task['labels'])}"
    words = [f"{label} = {word}" for label, word in zip(task["labels"], task["label_words"], strict=True)]
    return f"Input form: `{template}`; label words: {', '.join(words)}"
