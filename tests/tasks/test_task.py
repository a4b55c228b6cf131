import json

import pytest

from sptune.errors import InputError
from sptune.tasks import BENCHMARK_SOURCES, BENCHMARK_TASKS, Task, benchmark_task
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


def test_template_renders_fields_in_order_and_says_where_they_stand():
    template = Template.parse("{a} ? [MASK] , {b}")
    text, spans = template.render({"a": "Is it so", "b": "yes"}, "<mask>")
    assert text == "Is it so ? <mask> , yes"
    assert [text[start:end] for start, end in spans] == ["Is it so", "yes"]


def test_braces_are_written_twice_and_survive_a_round_trip():
    template = Template.parse("{{json}} {my text} [MASK]")
    assert template.render({"my text": "x"}, "M")[0] == "{json} x M"
    assert Template.parse(str(template)) == template


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text} . It was [MASK] .", "{text} . It was "),
        ("{text} It was", "{text} It was"),
        ("{a} and {b}: [MASK]", "{a} and {b}: "),
    ],
)
def test_a_template_is_cut_off_at_its_answer_for_causal_models(template, expected):
    assert str(Template.parse(template).open_ended()) == expected


def test_a_causal_model_is_not_asked_before_it_has_read_the_text():
    with pytest.raises(InputError, match="causal_template"):
        sentiment(template="[MASK] : {text}").template_for(causal=True)
    task = sentiment(template="[MASK] : {text}", causal_template="{text} Verdict:")
    assert str(task.template_for(causal=True)) == "{text} Verdict:"
    assert str(task.template_for(causal=False)) == "[MASK] : {text}"


def test_a_masked_model_needs_a_mask():
    with pytest.raises(InputError, match=r"\[MASK\]"):
        sentiment(template="{text} It was").template_for(causal=False)


@pytest.mark.parametrize(
    ("template", "context"),
    [
        ("{text} . It was [MASK] .", (" . It was", True)),
        ("{text} Verdict:", (" Verdict:", True)),
        ("{text}\nassistant\n", ("\nassistant\n", False)),
        ("{text}很[MASK]。", ("很", False)),
        ("[MASK] : {text}", ("", True)),
        ("{text} [MASK]", ("", True)),
        ("{text}[MASK]", ("", False)),
        ("{text}", ("", True)),
    ],
)
def test_what_stands_before_the_answer(template, context):
    assert Template.parse(template).answer_context == context


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "regression"}, "verbalizer, classifier"),
        ({"labels": ("good",)}, "two different classes"),
        ({"labels": ("good", "good")}, "two different classes"),
        ({"label_words": ("great",)}, "word of its own"),
        ({"label_words": None}, "word of its own"),
        ({"label_words": ("great", "great")}, "word of its own"),
        ({"label_words": (" ", "great")}, "empty word"),
        ({"template": None}, "needs a template"),
        ({"template": "It was [MASK]"}, "no text column"),
        ({"template": "{text} [MASK] [MASK]"}, "2 times"),
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
def test_what_cannot_be_right_is_refused_with_the_remedy(changes, message):
    with pytest.raises(InputError, match=message):
        sentiment(**changes)


def test_a_classifier_reads_one_or_two_texts():
    with pytest.raises(InputError, match="one text or a pair"):
        Task("x", "classifier", ("a", "b", "c"), "label", ("0", "1"))


@pytest.mark.parametrize("name", [*BENCHMARK_TASKS])
def test_tasks_survive_json(name):
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


def test_the_ten_benchmark_tasks_fit_both_kinds_of_language_model():
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


def test_an_unknown_benchmark_task_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"'sst3'.*sst2"):
        benchmark_task("sst3")
