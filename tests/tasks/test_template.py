import pytest

from sptune.tasks.template import Template


def test_a_rendered_template_has_the_spans_of_its_fields():
    template = Template.parse("{a} ? [MASK] , {b}")
    text, spans = template.render({"a": "Is it so", "b": "yes"}, "<mask>")
    assert text == "Is it so ? <mask> , yes"
    assert [text[start:end] for start, end in spans] == ["Is it so", "yes"]


def test_braces_are_written_twice_and_survive_a_round_trip():
    template = Template.parse("{{json}} {my text} [MASK]")
    assert template.render({"my text": "x"}, "M")[0] == "{json} x M"
    assert Template.parse(str(template)) == template


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
def test_the_context_of_the_answer(template, context):
    assert Template.parse(template).answer_context == context
