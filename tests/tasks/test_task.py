import json

import pytest

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_TASKS, Task
from sptune.tasks.template import Template


def sentiment(**changes):
    values = {
        "name": "reviews",
        "kind": "verbalizer",
        "text_fields": ("text",),
        "label_field": "label",
        "labels": ("bad", "good"),
        "template": "{text} . It was [MASK] .",
        "label_words": ("terrible", "great"),
    }
    return Task(**{**values, **changes})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text} . It was [MASK] .", "{text} . It was "),
        ("{text} It was", "{text} It was"),
        ("{a} and {b}: [MASK]", "{a} and {b}: "),
    ],
)
def test_a_template_ends_at_its_answer_for_causal_models(template, expected):
    assert str(Template.parse(template).open_ended()) == expected


def test_text_after_the_answer_is_refused_for_causal_models():
    with pytest.raises(InputError, match="causal_template"):
        sentiment(template="[MASK] : {text}").template_for(causal=True)
    task = sentiment(template="[MASK] : {text}", causal_template="{text} Verdict:")
    assert str(task.template_for(causal=True)) == "{text} Verdict:"
    assert str(task.template_for(causal=False)) == "[MASK] : {text}"


def test_a_masked_model_needs_a_mask():
    with pytest.raises(InputError, match=r"\[MASK\]"):
        sentiment(template="{text} It was").template_for(causal=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ranking"}, "verbalizer, classifier, multi_label, regression"),
        ({"labels": ("good",)}, "two different classes"),
        ({"labels": ("good", "good")}, "two different classes"),
        ({"label_words": ("great",)}, "word of its own"),
        ({"label_words": None}, "word of its own"),
        ({"label_words": ("great", "great")}, "word of its own"),
        ({"label_words": (" ", "great")}, "give each class a word"),
        ({"template": None}, "needs a template"),
        ({"template": "It was [MASK]"}, "no text column"),
        ({"template": "{text} [MASK] [MASK]"}, r"has 2 \[MASK\]"),
        ({"template": "{text [MASK]"}, "braces|brace|column"),
        ({"template": "{review} [MASK]"}, "review"),
        ({"template": "{text!r} [MASK]"}, "plain name"),
        ({"text_fields": "text"}, "list"),
        ({"text_fields": ("text", "more")}, "same columns"),
        ({"metrics": ("recall",)}, "accuracy, f1"),
        ({"metrics": ("accuracy", "f1")}, "positive_label"),
        ({"positive_label": "great"}, "bad, good"),
        ({"kind": "classifier"}, "no template"),
    ],
)
def test_invalid_values_are_refused_with_a_remedy(changes, message):
    with pytest.raises(InputError, match=message):
        sentiment(**changes)


def test_a_classifier_reads_one_or_two_texts():
    with pytest.raises(InputError, match="one text or a pair"):
        Task("x", "classifier", ("a", "b", "c"), "label", ("0", "1"))


@pytest.mark.parametrize("name", [*BENCHMARK_TASKS])
def test_tasks_survive_a_json_round_trip(name):
    task = BENCHMARK_TASKS[name]
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_a_task_file_with_a_wrong_key_is_refused():
    values = BENCHMARK_TASKS["sst2"].to_dict()
    with pytest.raises(InputError, match="tempalte"):
        Task.from_dict({**values, "tempalte": "x"})
    with pytest.raises(InputError, match="labels"):
        Task.from_dict({"name": "x"})


def test_other_columns_and_class_names_keep_the_template_and_the_metric():
    task = BENCHMARK_TASKS["mrpc"].with_columns(("first text", "second"), "same").with_labels(("0", "1"))
    assert task.text_fields == ("first text", "second")
    assert task.label_field == "same"
    assert task.template == "{first text} ? [MASK] , {second}"
    assert task.causal_template is not None
    assert "{second}" in task.causal_template
    assert task.positive_label == "1"
    with pytest.raises(InputError, match="as many"):
        task.with_columns(("text",))
    with pytest.raises(InputError, match="as many"):
        task.with_labels(("a", "b", "c"))


def test_any_verbalizer_can_be_a_classifier():
    task = BENCHMARK_TASKS["rte"].as_classifier()
    assert task.kind == "classifier"
    assert task.text_fields == ("text_a", "text_b")
    assert task.label_words is None
