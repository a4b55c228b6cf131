"""A tiny classification problem, tiny supernets and training arguments for the tests of the search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import TrainingArguments

from sptune.search import SearchConfig, search_prompt_layers
from sptune.training.data_order import grouping_by_length


def build_examples(size: int, seed: int = 5) -> list[dict[str, Any]]:
    """Texts of unequal length; the class of a text is told by its first token."""
    noise = torch.Generator().manual_seed(seed)
    examples = []
    for index in range(size):
        length = int(torch.randint(3, 9, (1,), generator=noise))
        tokens = torch.randint(5, 100, (length,), generator=noise).tolist()
        tokens[0] = 5 + index % 3
        examples.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": index % 3})
    return examples


def pad_batch(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right padding; labels may be one class or one label for each token."""
    width = max(len(example["input_ids"]) for example in examples)

    def column(name: str, filler: int) -> Tensor:
        rows = [example[name] for example in examples]
        if isinstance(rows[0], int):
            return torch.tensor(rows)
        return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

    return {name: column(name, -100 if name == "labels" else 0) for name in examples[0]}


@pytest.fixture
def make_examples() -> Callable[..., list[dict[str, Any]]]:
    """``make_examples(size, seed=5)``: as many as are wanted."""
    return build_examples


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Twenty-four examples, eight of each of three classes."""
    return build_examples(24)


@pytest.fixture
def collate() -> Callable[..., dict[str, Tensor]]:
    return pad_batch


@pytest.fixture
def build_supernet(
    build_backbone: Callable[..., Any], build_config: Callable[..., Any], bert: Any
) -> Callable[..., PeftModel]:
    """``build_supernet(case=bert, head="classifier", backbone={}, **options)``: the same weights each time."""

    def build(
        case: Any = bert, head: str = "classifier", backbone: dict[str, Any] | None = None, **options: Any
    ) -> PeftModel:
        model = build_backbone(case, head, **(backbone or {}))
        config = build_config(case, head, **{"prompt_layers": "search", **options})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return get_peft_model(model, config)

    return build


@pytest.fixture
def build_args(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """``build_args(**options)``: silent training on the CPU; ``group_by_length=True`` in either major version."""

    def build(*, group_by_length: bool = False, **options: Any) -> TrainingArguments:
        if group_by_length:
            options |= grouping_by_length()
        silent = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        usual = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "lr_scheduler_type": "linear"}
        return TrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, **silent, **usual, **options})

    return build


@pytest.fixture
def search(build_supernet, build_args, examples, collate):
    """``search(searcher, seed=0, steps=6, **fields)``: the result and the network."""

    def run(searcher, seed=0, steps=6, network=None, args=None, tell=None, **fields):
        network = network or build_supernet()
        more = {} if tell is None else {"tell": tell}
        config = SearchConfig(searcher=searcher, seed=seed, **{"num_prompt_layers": 2, **fields})
        args = build_args(**{"max_steps": steps, **(args or {})})
        return search_prompt_layers(network, examples, args, config, data_collator=collate, **more), network

    return run


@pytest.fixture
def build_trainer(build_supernet, build_args, examples, collate):
    def build(trainer_class, searcher, network=None, args=None, gate_sampler=None, **fields):
        config = SearchConfig(searcher=searcher, **{"num_prompt_layers": 2, **fields})
        network = network or build_supernet()
        own = {} if gate_sampler is None else {"gate_sampler": gate_sampler}
        return trainer_class(
            network, build_args(**(args or {})), train_dataset=examples, search=config, data_collator=collate, **own
        )

    return build


@pytest.fixture
def plain_loss(collate: Callable[..., dict[str, Tensor]]) -> Callable[..., float]:
    """``plain_loss(network, examples)``: the mean of the examples' losses, each computed alone."""

    def loss(network: PeftModel, examples: list[dict[str, Any]]) -> float:
        with torch.no_grad():
            batches = [collate([one]) for one in examples]
            losses = [functional.cross_entropy(network(**batch).logits, batch["labels"]) for batch in batches]
        return torch.stack(losses).mean().item()

    return loss
