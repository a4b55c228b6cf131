"""Fills the templates. Texts are escaped, and a page loads nothing: its policy refuses every request."""

from __future__ import annotations

import functools
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("sptune.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def page(template: str, **values: Any) -> str:
    """An HTML page.

    Args:
        template: the name of a template.
        **values: what it shows.

    Raises:
        ValueError: a value that the template needs is missing.
    """
    try:
        return TEMPLATES.get_template(template).render(chart_library=_chart_library(), **values)
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from None


def number(value: float | None, form: str = ".4f") -> str:
    """A number as text, and a dash where there is none."""
    return "–" if value is None else format(value, form)


TEMPLATES.filters["number"] = number


@functools.cache
def _chart_library() -> Markup:
    """The JavaScript of Vega, Vega-Lite and vega-embed, which vl-convert has."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return Markup(script.replace("</script", r"<\/script").replace("<!--", r"<\!--"))
