"""The model card of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from sptune.runs.card_parts import LANGUAGE_MODELS, CardParts

CARD_FILE = "README.md"
# Where the card says that the adapter is; whoever reads it knows.
PLACE = "path/to/this/folder"
# Counts, and the metric that stands for another one.
NO_RESULTS = ("examples", "generated_examples", "score")
# Names of folders that say nothing about the model in them.
UNTELLING = ("model", "models", "checkpoint", "final", "best", "snapshots")


def model_card(
    base: dict[str, Any], load: str, tokenizer: str, task: str, parts: CardParts, metrics: dict[str, Any]
) -> str:
    """The adapter's README.md: what it is, what it scored, and how to load it.

    Args:
        base: the backbone's description, as task.json keeps it.
        load: the Python expression that loads the backbone.
        tokenizer: the one that loads its tokenizer.
        task: the name of the task.
        parts: what depends on the kind of task.
        metrics: what the run measured.
    """
    return f"""---
{_front_matter(base, parts.pipeline, task, metrics)}
---

# {task}: selective prompts for {_model_name(base["model"])}

An adapter for `{base["model"]}`: soft prompts at layers {", ".join(map(str, metrics["prompt_layers"]))}, made by
Selective Prompt Tuning with sptune. The backbone is frozen; {metrics["parameters"]["trainable"]:,} \
parameters were trained.

{parts.input_form}.

{parts.scores}

## Use

```python
import sptune  # makes SPT known to PEFT
from peft import PeftModel
{_imports(base)}
backbone = {load}
model = PeftModel.from_pretrained(backbone, "{PLACE}").eval()
tokenizer = {tokenizer}
{parts.usage}```

Without `import sptune` PEFT says `KeyError: 'SPT'`.

Or from the shell:

    sptune predict --adapter {PLACE} --input {parts.input_file} --output predictions.jsonl
"""


def _model_name(model: str) -> str:
    """The name of a backbone in a title: a hub id as it is, of a local path the last part that says something."""
    path = Path(model)
    if not path.is_absolute():
        return model
    names = [name for name in reversed(path.parts[1:]) if name.lower() not in UNTELLING]
    return names[0] if names else path.name


def card_on_hub(card: str, repo_id: str) -> str:
    """The card of an adapter in a repository of the hub, by whose id PEFT loads it."""
    loaded = card.replace(f'(backbone, "{PLACE}")', f'(backbone, "{repo_id}")')
    return loaded.replace(
        f"    sptune predict --adapter {PLACE}",
        f"    hf download {repo_id} --local-dir adapter\n    sptune predict --adapter adapter",
    )


def _front_matter(base: dict[str, Any], pipeline: str, task: str, metrics: dict[str, Any]) -> str:
    """What the hub reads of a card; the metrics of the test data are its model-index."""
    name = f"{task}: selective prompts for {_model_name(base['model'])}"
    results = [
        EvalResult(pipeline, task, task, metric, value, dataset_split="test")
        for metric, value in metrics["test"].items()
        if isinstance(value, int | float) and metric not in NO_RESULTS
    ]
    front = ModelCardData(
        base_model=None if Path(base["model"]).is_absolute() else base["model"],
        library_name="peft",
        pipeline_tag=pipeline,
        tags=["sptune", "prompt-tuning", "selective-prompt-tuning"],
        model_name=name,
        eval_results=results,
    )
    return yaml.safe_dump(front.to_dict(), sort_keys=False, allow_unicode=True).strip()


def _imports(base: dict[str, Any]) -> str:
    if base["pooling"] == "mean":
        return "from transformers import AutoTokenizer\n\nfrom sptune import MeanPooledClassifier\n"
    loader = LANGUAGE_MODELS.get(base["head"], "AutoModelForSequenceClassification")
    return f"from transformers import {loader}, AutoTokenizer"
