import pytest

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_TASKS, compute_metrics


def test_accuracy_is_the_score_of_most_tasks():
    assert compute_metrics(BENCHMARK_TASKS["sst2"], [0, 1, 1, 0], [0, 1, 0, 0]) == {"accuracy": 0.75, "score": 0.75}


def test_mrpc_is_scored_by_the_mean_of_accuracy_and_f1_of_the_paraphrases():
    # Paraphrase is class 1: 2 hits, 1 false alarm, 1 miss; precision and recall are 2/3.
    metrics = compute_metrics(BENCHMARK_TASKS["mrpc"], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert metrics["accuracy"] == pytest.approx(0.6)
    assert metrics["f1"] == pytest.approx(2 / 3)
    assert metrics["score"] == metrics["mean"] == pytest.approx((0.6 + 2 / 3) / 2)


def test_f1_is_zero_where_the_class_never_occurs():
    assert compute_metrics(BENCHMARK_TASKS["qqp"], [0, 0], [0, 0])["f1"] == 0.0


@pytest.mark.parametrize(("predictions", "labels"), [([], []), ([0], [0, 1]), ([[0.1, 0.9]], [1])])
def test_shapes_that_cannot_be_scored_are_refused(predictions, labels):
    with pytest.raises(InputError, match="class indices"):
        compute_metrics(BENCHMARK_TASKS["sst2"], predictions, labels)
