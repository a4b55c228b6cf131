"""Reads labeled text from files or Hugging Face datasets and checks it before a model is loaded."""

from sptune.tasks.data.labeled_data import load_splits, read_labeled, read_unlabeled

__all__ = ["load_splits", "read_labeled", "read_unlabeled"]
