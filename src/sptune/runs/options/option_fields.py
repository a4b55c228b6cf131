"""`OptionFields`: the options of a run with their defaults and their help, for Python, YAML and the command line.

The options of the prompts and of their search are the fields of `PromptConfig` and `SearchConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sptune.prompt_config import PromptConfig
from sptune.search.search_config import SearchConfig
from sptune.training.caching.cache_settings import DTYPES

# The commands that take an option.
ALL = ("fit", "search", "train")
SEARCHING = ("fit", "search")
TRAINING = ("fit", "train")


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    verbs: tuple[str, ...] = ALL,
    choices: tuple[str, ...] | None = None,
    flag: str | None = None,
) -> Any:
    """A field with what the command line shows of it: its group, help, the verbs that take it, and its flag."""
    metadata = {"help": help, "group": group, "verbs": verbs, "choices": choices, "flag": flag}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(init=False)
class OptionFields:
    """The fields of `RunOptions`, which reads and checks their values."""

    model: str | None = _option(None, "Backbone", "Backbone: a hub id or a local folder.")
    gguf_file: str | None = _option(
        None, "Backbone", "Backbone as a GGUF file: its name inside --model, or the path of a local file."
    )
    revision: str | None = _option(None, "Backbone", "Branch, tag or commit of a backbone from the hub.")
    dtype: str = _option("float32", "Backbone", "dtype of the frozen backbone.", choices=DTYPES)
    head_pooling: str | None = _option(
        None,
        "Backbone",
        "Pooling of a classifier: 'mean', the masked mean over the text, or 'own', the backbone's own. "
        "Default: mean for encoders, own for causal models.",
        choices=("mean", "own"),
    )

    task: str | None = _option(None, "Data", "A benchmark task (see 'sptune tasks'); leave it out for your own data.")
    task_kind: str | None = _option(
        None,
        "Data",
        "'verbalizer' (label words read by the language-model head), 'classifier' (a trained head), 'multi_label' (any "
        "number of labels a text), 'regression' (a number) or 'generate' (a causal model writes text). Default: "
        "verbalizer for a task with a template on a language model, else classifier.",
        choices=("verbalizer", "classifier", "multi_label", "regression", "generate"),
    )
    train_file: str | None = _option(None, "Data", "Training data: .jsonl, .csv, .tsv or .parquet.")
    validation_file: str | None = _option(None, "Data", "Validation data. Default: split off from the training data.")
    test_file: str | None = _option(None, "Data", "Test data. Default: split off from the training data.")
    dataset: str | None = _option(
        None, "Data", "Instead of files: a Hugging Face dataset, by its hub id, local folder or file."
    )
    dataset_config: str | None = _option(None, "Data", "Configuration of that dataset, such as a GLUE task.")
    text_columns: list[str] = _option(  # noqa: RUF009
        list,
        "Data",
        "Column with the text; give it twice for pairs. Default: the task's, or 'text'.",
        flag="text-column",
    )
    label_column: str | None = _option(None, "Data", "Column with the label. Default: the task's, or 'label'.")
    labels: list[str] = _option(  # noqa: RUF009
        list,
        "Data",
        "A class; once for each, in the order of the task. Default: the task's, or those in the data.",
        flag="label",
    )
    label_separator: str | None = _option(
        None, "Data", "multi_label: what stands between labels in a text, such as a value of a CSV file. Default: '|'."
    )
    label_threshold: float | None = _option(
        None, "Data", "multi_label: labels with at least this probability are predicted. Default: 0.5."
    )
    template: str | None = _option(
        None, "Data", "Turns your texts into a cloze, such as '{text} . It was [MASK] .'; needs --label-word."
    )
    label_words: dict[str, str] = _option(  # noqa: RUF009
        dict, "Data", "Label word of a class, such as 'positive=great'; once for each class.", flag="label-word"
    )
    prompt_column: str | None = _option(None, "Generation", "Column with the prompt. Default: 'prompt'.")
    completion_column: str | None = _option(None, "Generation", "Column with the completion. Default: 'completion'.")
    messages_column: str | None = _option(
        None,
        "Generation",
        "Column with lists of chat messages, instead of prompts and completions. Default: 'messages', if "
        "there is no column 'prompt'.",
    )
    few_shot: int | None = _option(
        None, "Data", "Train on this many examples only, drawn in proportion to the classes."
    )
    max_length: int | None = _option(
        None, "Data", "Maximum input length in tokens. Default: the backbone's, at most 512."
    )
    max_new_tokens: int | None = _option(
        None, "Generation", "Maximum length of a written text in tokens. Default: 128.", verbs=TRAINING
    )
    generated_examples: int | None = _option(
        None, "Generation", "Write completions for this many test examples. Default: 200.", verbs=TRAINING
    )

    preset: str | None = _option(
        None,
        "Prompts",
        "'paper': prompts in front of the text and a search by SPT-DARTS, unless other options say otherwise.",
        choices=("paper",),
    )
    prompts: PromptConfig = field(default_factory=PromptConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    search_steps: int | None = _option(
        None,
        "Search",
        "Optimizer steps of the search. Default: 150, or a quarter of those of the final training if that is less.",
        verbs=SEARCHING,
    )

    epochs: float | None = _option(
        None,
        "Training",
        "Epochs of the final training. Default: 5, at least 150 and at most 2000 steps.",
        verbs=TRAINING,
    )
    max_steps: int | None = _option(
        None, "Training", "Optimizer steps of the final training, instead of epochs.", verbs=TRAINING
    )
    eval_steps: int | None = _option(
        None,
        "Training",
        "Evaluate on validation data every this many optimizer steps of the final training. Default: 5 times, in more "
        "than 300 steps 10 times.",
        verbs=TRAINING,
    )
    early_stopping: int | None = _option(
        None,
        "Training",
        "End the final training after this many evaluations without improvement on validation data. Default: never.",
        verbs=TRAINING,
    )
    batch_size: int = _option(16, "Training", "Batch size per device.")
    gradient_accumulation_steps: int = _option(1, "Training", "Batches per optimizer step.")
    learning_rate: float | None = _option(
        None, "Training", "Learning rate of the generators. Default: 5e-3, static prompts 5e-2."
    )
    head_learning_rate: float | None = _option(
        None, "Training", "Learning rate of a trained head. Default: 1e-2 with mean pooling, else 1e-3."
    )
    weight_decay: float = _option(0.01, "Training", "Weight decay of AdamW.")
    class_weights: str | dict[str, float] | None = _option(  # noqa: RUF009
        None,
        "Training",
        "For classes of unequal size: 'balanced', by which all classes count the same, or the weight of a class, such "
        "as 'positive=2', once for each class. Default: 1.",
    )
    loss: str | None = _option(
        None,
        "Training",
        "Loss of classes: focal counts examples less that are predicted well. Default: cross_entropy.",
        choices=("cross_entropy", "focal"),
    )
    focal_gamma: float | None = _option(
        None, "Training", "How much less the focal loss counts them; 0 is the cross entropy. Default: 2."
    )
    bf16: bool = _option(
        False,
        "Training",
        "Compute in bfloat16 where that is safe (autocast); trained weights stay float32. Left off on CPUs for which "
        "PyTorch has no bfloat16 kernels.",
    )
    activation_cache: bool = _option(
        True, "Training", "Run the layers below the first prompt layer once per text, and cache the result."
    )
    activation_cache_memory: float = _option(
        4.0, "Training", "Keep up to this many GiB of the cache in memory, more in a file."
    )
    activation_cache_dtype: str | None = _option(
        None,
        "Training",
        "dtype of the cache. Default: the backbone's; a shorter one is not exact.",
        choices=DTYPES,
    )
    gradient_checkpointing: bool = _option(False, "Training", "Trade time for memory in the backward pass.")
    linear_probe: bool = _option(
        True,
        "Training",
        "Also train a linear probe (label words, generate: evaluate zero-shot), and report the gain over it.",
        verbs=TRAINING,
    )
    seed: int = _option(0, "Training", "Seed of sampling, initialization and training.")

    report_to: list[str] = _option(  # noqa: RUF009
        list,
        "Output",
        "A tracker that receives losses, gates and scores, such as tensorboard, wandb or mlflow; give it several times "
        "for several. Default: none.",
    )
    push_to_hub: str | None = _option(
        None,
        "Output",
        "Push the finished adapter to this repository of the model hub, such as me/films. The token is that of "
        "'hf auth login' or HF_TOKEN.",
        verbs=TRAINING,
    )
    hub_private: bool = _option(False, "Output", "The repository of --push-to-hub is made private.", verbs=TRAINING)
    output_dir: str | None = _option(None, "Output", "Folder for everything the run writes.", flag="output")
    resume: bool = _option(False, "Output", "Resume the run in --output.")
    overwrite: bool = _option(False, "Output", "Replace the run in --output.")
    keep_checkpoints: bool = _option(False, "Output", "Keep the checkpoints of a finished run.")
