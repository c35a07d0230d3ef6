"The site: `sphinx-build -c docs nbs _site`, then open _site/index.html."

import re
import sys
from pathlib import Path

import nbformat
from docutils import nodes

# directive of a cell -> tag of its page
FOLDED = {
    "default_exp": "remove-cell",
    "hide": "remove-cell",
    "test": "hide-input",
    "hide_input": "hide-input",
}
DRAWING = dict(code_prompt_show="Show the drawing code", code_prompt_hide="Hide the drawing code")
WIDGET = "application/vnd.jupyter.widget-view+json"


def read(text):
    "A notebook without nbdev's directives; tests and drawing code are folded (not `#| show`)."
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        words = re.findall(r"^#\| *(\w+)", cell.source, re.M)
        folded = [] if "show" in words else words
        cell.metadata.tags = [FOLDED[word] for word in folded if word in FOLDED]
        if "hide_input" in words:
            cell.metadata.mystnb = DRAWING
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        for output in cell.outputs:  # no kernel moves a slider there
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def number(app, doctree):
    "A page's title begins with its notebook's number."
    found = re.match(r"\d+", app.env.docname.split("/")[-1])
    title = doctree.next_node(nodes.title)
    if found and title:
        title.insert(0, nodes.Text(f"{found[0]} · "))


def setup(app):
    app.connect("doctree-read", number, priority=400)  # before titles are collected


sys.path.insert(0, str(Path(__file__).parent))  # for conf.read
project = html_title = "pairuni_nb"
author = "pairuni_nb contributors"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]
nb_custom_formats = {".ipynb": "conf.read"}
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "Show the test"
nb_code_prompt_hide = "Hide the test"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = dict(show_toc_level=1, use_download_button=True, navbar_persistent=[])
