"""Formulas become MathML when the site is built: a page needs no script and no network for them."""

from functools import cache
from html import escape

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

log = logging.getLogger(__name__)
converter = LatexToMathML(macros={"cr": r"\\"}, fancy_error=False)


@cache
def mathml(
    tex: str,  # without its dollars; \tag{1} numbers a formula
    display: bool,  # on a line of its own
) -> str:
    "The formula as MathML."
    numbered = rf"\begin{{equation}}{tex}\end{{equation}}" if r"\tag{" in tex else tex
    return converter.convert_with_local_state(numbered.strip(), displaystyle=display)


def shown(tex, display, location):
    "A formula that cannot be converted is a warning, which `-W` makes an error."
    try:
        return mathml(tex, display)
    except LatexError as error:
        log.warning("the formula %r is not understood: %s", tex, error, location=location)
        return f"<code>{escape(tex)}</code>"


def write(page, node, display):
    "The formula of a page."
    made = shown(node.astext(), display, node)
    if display:  # it scrolls where a phone is narrower
        made = f"{page.starttag(node, 'div', CLASS='formula')}{made}</div>\n"
    page.body.append(made)
    raise nodes.SkipNode


def setup(app):
    inline, block = (lambda page, node, d=d: write(page, node, d) for d in (False, True))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
