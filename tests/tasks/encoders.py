"""Encoders and examples of the benchmark tasks for the tests."""

from sptune.tasks import BENCHMARK_TASKS, Example, Task, TaskEncoder

SST2, TREC, RTE = (BENCHMARK_TASKS[name] for name in ("sst2", "trec", "rte"))
TOPIC = Task("topic", "verbalizer", ("text",), "label", ("a", "b"), "{text} . It was [MASK] .", None, ("Yes", "No"))
MASKED = ("bert", "roberta")
CAUSAL = ("gpt2", "llama")


def example(label="positive", where="train.jsonl:1", **fields):
    return Example(fields or {"text": "a film that is better than the book"}, label, where)


def encoder(tokenizers, family, task=SST2, max_length=64):
    return TaskEncoder(task, tokenizers[family], max_length=max_length, causal=family in CAUSAL)
