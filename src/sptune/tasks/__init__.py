"""Text-classification tasks: templates, the ten benchmark tasks, data, splits, encoding and metrics."""

from sptune.tasks.benchmark_tasks import BENCHMARK_SOURCES, BENCHMARK_TASKS, HubSource, benchmark_task, load_benchmark
from sptune.tasks.data import load_splits, read_labelled, read_unlabelled
from sptune.tasks.encoding import PaddingCollator, TaskEncoder, padding_token_id
from sptune.tasks.metrics import compute_metrics
from sptune.tasks.splits import Example, Splits, few_shot, split_stratified
from sptune.tasks.task import Task

__all__ = [
    "BENCHMARK_SOURCES",
    "BENCHMARK_TASKS",
    "Example",
    "HubSource",
    "PaddingCollator",
    "Splits",
    "Task",
    "TaskEncoder",
    "benchmark_task",
    "compute_metrics",
    "few_shot",
    "load_benchmark",
    "load_splits",
    "padding_token_id",
    "read_labelled",
    "read_unlabelled",
    "split_stratified",
]
