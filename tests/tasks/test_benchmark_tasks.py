import datasets

from sptune.tasks import load_benchmark


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
    splits = load_benchmark("mrpc", data=str(tmp_path / "mrpc"))
    assert len(splits.test) == 10
    assert splits.test[1].fields == {"text_a": "a 1", "text_b": "b 1"}
    assert [example.label for example in splits.test[:2]] == ["not_paraphrase", "paraphrase"]
