import datasets
import pytest

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_SOURCES, BENCHMARK_TASKS, benchmark_task, load_benchmark


def test_benchmark_tasks_fit_masked_and_causal_models():
    names = ["sst2", "mr", "mpqa", "subj", "trec", "mnli", "mrpc", "qqp", "qnli", "rte"]
    assert list(BENCHMARK_TASKS) == names
    assert set(BENCHMARK_SOURCES) == set(names)
    for name, task in BENCHMARK_TASKS.items():
        assert task.name == name
        assert task.template_for(causal=False).has_answer
        assert set(task.template_for(causal=True).fields) == set(task.text_fields)
        source = BENCHMARK_SOURCES[name]
        assert len(source.label_names) == len(task.labels)
        assert len(source.text_columns) == len(task.text_fields)
        assert ("f1" in task.metrics) == (name in ("mrpc", "qqp"))


def test_label_words_of_the_published_templates():
    words = dict(zip(BENCHMARK_TASKS["trec"].labels, BENCHMARK_TASKS["trec"].label_words, strict=True))
    assert words["abbreviation"] == "Expression"
    words = dict(zip(BENCHMARK_TASKS["mnli"].labels, BENCHMARK_TASKS["mnli"].label_words, strict=True))
    assert words == {"contradiction": "No", "entailment": "Yes", "neutral": "Maybe"}
    assert BENCHMARK_TASKS["qqp"].template == "{text_a} [MASK] , {text_b}"


def test_an_unknown_benchmark_task_is_refused_with_the_known_names():
    with pytest.raises(InputError, match=r"'sst3'.*sst2"):
        benchmark_task("sst3")


def test_a_benchmark_dataset_gets_the_columns_and_classes_of_its_task(tmp_path):
    features = datasets.Features(
        {
            "sentence1": datasets.Value("string"),
            "sentence2": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
        }
    )
    columns = {
        "sentence1": [f"a {i}" for i in range(40)],
        "sentence2": [f"b {i}" for i in range(40)],
        "label": [i % 2 for i in range(40)],
    }
    split = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict({"train": split, "test": split.select(range(10))}).save_to_disk(str(tmp_path / "mrpc"))
    splits = load_benchmark("mrpc", dataset=str(tmp_path / "mrpc"))
    assert len(splits.test) == 10
    assert splits.test[1].fields == {"text_a": "a 1", "text_b": "b 1"}
    assert [example.label for example in splits.test[:2]] == ["not_paraphrase", "paraphrase"]
