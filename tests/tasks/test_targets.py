"""What a head learns for labels and numbers, and back; in batches, too."""

import numpy as np
import pytest
import torch

from sptune.errors import InputError
from sptune.tasks import Example, Task, TaskEncoder
from sptune.tasks.targets import has_labels, numbers, probabilities, targets

LABELS = Task("tags", "multi_label", ("text",), "label", ("fun", "long", "sad"), threshold=0.6)
NUMBERS = Task("stars", "regression", ("text",), "stars", (), target_mean=1e9, target_std=2.0)


def examples(*labels):
    return [Example({"text": f"text {index}"}, label, f"data:{index}") for index, label in enumerate(labels)]


def test_targets_and_what_scores_say_are_the_reverse_of_each_other():
    assert targets(LABELS, examples(("sad", "fun"), ())) == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    learned = targets(NUMBERS, examples(1e9 + 3, 1e9 - 1))
    assert learned == [1.5, -0.5]
    assert numbers(NUMBERS, np.array(learned, dtype=np.float32)[:, None]).tolist() == [1e9 + 3, 1e9 - 1]
    scores = np.log([[1.0, 2.0, 1.0]])  # probabilities of 1/2, 2/3, 1/2
    np.testing.assert_allclose(probabilities(LABELS, scores), [[1 / 2, 2 / 3, 1 / 2]])
    assert has_labels(LABELS, scores).tolist() == [[False, True, False]]


def test_a_label_that_is_not_of_the_task_is_refused():
    with pytest.raises(InputError, match=r"data:1: label 'dull' is not a class of task 'tags' \(fun, long, sad\)"):
        targets(LABELS, examples(("fun",), ("fun", "dull")))


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [(LABELS, [("sad",), ()], [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), (NUMBERS, [1e9, 1e9 + 1], [0.0, 0.5])],
)
def test_batches_hold_them_as_floats(bert_tokenizer, task, labels, expected):
    encoder = TaskEncoder(task, bert_tokenizer, max_length=16, causal=False)
    batch = encoder.collator(list(encoder.encode(examples(*labels))))
    torch.testing.assert_close(batch["labels"], torch.tensor(expected))


def test_scores_must_be_as_many_as_are_predicted(bert_tokenizer):
    encoder = TaskEncoder(NUMBERS, bert_tokenizer, max_length=16, causal=False)
    with pytest.raises(InputError, match=r"predicts one number; load it with .*num_labels=1"):
        encoder.read_scores(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "regression"}, "leave it out: a regression predicts a number"),
        ({"threshold": 1.0}, "give a probability between 0 and 1"),
        ({"label_separator": ""}, "label_separator is empty"),
        ({"target_std": 1.0}, "kind 'multi_label' has none"),
        ({"metrics": ("accuracy",)}, "micro_f1, macro_f1, subset_accuracy"),
        ({"template": "{text} [MASK]"}, "a task of kind 'multi_label' has no template"),
        ({"kind": "regression", "labels": (), "target_std": 0.0}, "finite numbers, the second above 0"),
        ({"kind": "regression", "labels": (), "target_mean": float("nan")}, "finite numbers"),
        ({"kind": "classifier", "threshold": 0.4}, "kind 'classifier' has none"),
    ],
)
def test_tasks_that_cannot_be_are_refused(changes, message):
    values = {"name": "tags", "kind": "multi_label", "text_fields": ("text",), "label_field": "x", "labels": ("a", "b")}
    with pytest.raises(InputError, match=message):
        Task(**{**values, **changes})


@pytest.mark.parametrize("task", [LABELS, NUMBERS])
def test_a_task_is_the_same_after_its_file(task):
    assert Task.from_dict(task.to_dict()) == task
