"""Reads labeled texts, prompts and chats from files or Hugging Face datasets; checks them before a model is loaded."""

from sptune.tasks.data.labeled_data import load_splits, read_labeled, read_unlabeled
from sptune.tasks.data.named_rows import read_named
from sptune.tasks.data.request_checks import Text, check_request

__all__ = ["Text", "check_request", "load_splits", "read_labeled", "read_named", "read_unlabeled"]
