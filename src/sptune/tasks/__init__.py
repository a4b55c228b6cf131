"""Text classification and text generation: tasks, templates, benchmark tasks, data, splits, encoding and metrics."""

from sptune.renamed import warn_renamed
from sptune.tasks.benchmark_tasks import BENCHMARK_SOURCES, BENCHMARK_TASKS, HubSource, benchmark_task, load_benchmark
from sptune.tasks.data import Text, check_request, load_splits, read_labeled, read_named, read_unlabeled
from sptune.tasks.metrics import compute_metrics
from sptune.tasks.padding import PaddingCollator, padding_token_id
from sptune.tasks.splits import Example, Splits, few_shot, split_stratified
from sptune.tasks.task import Task
from sptune.tasks.task_encoder import TaskEncoder

__all__ = [
    "BENCHMARK_SOURCES",
    "BENCHMARK_TASKS",
    "Example",
    "HubSource",
    "PaddingCollator",
    "Splits",
    "Task",
    "TaskEncoder",
    "Text",
    "benchmark_task",
    "check_request",
    "compute_metrics",
    "few_shot",
    "load_benchmark",
    "load_splits",
    "padding_token_id",
    "read_labeled",
    "read_named",
    "read_unlabeled",
    "split_stratified",
]


def __getattr__(name: str) -> object:
    new_name = {"read_labelled": "read_labeled", "read_unlabelled": "read_unlabeled"}.get(name)
    if new_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(name, new_name)
    return globals()[new_name]
