"The site: `sphinx-build -c docs nbs _site`, then open _site/index.html."

import ast
import re
import sys
from configparser import ConfigParser
from html import escape
from pathlib import Path

sys.modules["rfc3987_syntax"] = None  # nbformat would compile 38 grammars of URLs, unused here
import nbformat  # noqa: E402
from docutils import nodes  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for conf.read, formulas and api_pages
from formulas import shown  # noqa: E402

# directive of a cell -> tag of its page
FOLDED = {
    "default_exp": "remove-cell",
    "hide": "remove-cell",
    "test": "hide-input",
    "hide_input": "hide-input",
}
DRAWING = dict(code_prompt_show="Show the drawing code", code_prompt_hide="Hide the drawing code")
TABLE = dict(code_prompt_show="Show the code of the table", code_prompt_hide="Hide the code")
IMPORTS = dict(code_prompt_show="Show the imports", code_prompt_hide="Hide the imports")
WIDGET = "application/vnd.jupyter.widget-view+json"
# what a notebook reads that is not in the package
LOCAL = re.compile(r"""["'](\.\./)+benchmarks/|["']\d\d_\w+\.jsonl|Path\(\\?["']\.\.""")
COLAB = "https://colab.research.google.com/github/{place}/blob/{branch}/nbs/{page}.ipynb"


def sentence(text):
    "The last paragraph of some Markdown as a picture's text: one line, no markup."
    last = text.strip().split("\n\n")[-1]
    last = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", last)
    return re.sub(r"[*`#$\\{}]|\s+", lambda m: " " if m[0].isspace() else "", last).strip()


def alternative(cell, before):
    "A picture's text: `#| alt ..`, else the figure's own title, else what the page says before it."
    said = re.search(r"^#\| *alt +(.+)", cell.source, re.M)
    title = re.search(r"""title\(\s*(["'])(.+?)\1\s*[,)]""", cell.source)
    return said[1] if said else title[2].replace(r"\n", " ") if title else sentence(before)


def imports(source):
    "Whether a cell does nothing but import, for more than five lines, and set a thing or two."
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    rest = [line for line in lines if not isinstance(line, (ast.Import, ast.ImportFrom))]
    plain = all(isinstance(line, (ast.Expr, ast.Assign)) for line in rest)
    return plain and len(rest) < 4 and len(source.splitlines()) > 5 and len(lines) > 2 * len(rest)


def comments_apart(cells):
    "The cells, and what a cell of imports says above them, its page's symbols, as one of its own."
    for cell in cells:
        found = re.match(r"((?:#.*\n)*?)((?:# .*\n)+)", cell.source)
        if cell.cell_type == "code" and found and imports(cell.source):
            yield nbformat.v4.new_code_cell(found[2].strip())
            cell.source = found[1] + cell.source[found.end() :]
        yield cell


def on_the_fold(cell, words):
    "What the fold of a cell says, if it is no test's."
    if "test" in words:
        return {}
    if imports(cell.source):
        return IMPORTS
    if "hide_input" not in words:
        return {}
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    return DRAWING if "image/png" in kinds or "text/markdown" not in kinds else TABLE


def read(text):
    "A notebook without nbdev's directives; tests, imports and drawing code are folded."
    notebook, before = nbformat.reads(text, as_version=4), ""
    notebook.cells = list(comments_apart(notebook.cells))
    for cell in notebook.cells:
        if cell.cell_type != "code":
            before = cell.source
            continue
        words = re.findall(r"^#\| *(\w+)", cell.source, re.M)
        folded = [] if "show" in words else words
        cell.metadata.tags = [FOLDED[word] for word in folded if word in FOLDED]
        label = on_the_fold(cell, words)
        if label is IMPORTS:
            cell.metadata.tags.append("hide-input")
        cell.metadata.mystnb = dict(label)
        cell.metadata.mystnb |= dict(image=dict(alt=alternative(cell, before)))
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        for output in cell.outputs:  # no kernel moves a slider there
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def in_html(app, doctree):
    "Formulas in a notebook's own HTML, where Markdown reads none: the questions of a quiz."
    for node in doctree.findall(nodes.raw):
        if "<summary>" in node.astext():
            place = app.env.docname
            found = re.sub(r"\$([^$\n]+)\$", lambda m: shown(m[1], False, place), node.astext())
            node.children[:] = [nodes.Text(found)]
            node.rawsource = found


def number(app, doctree):
    "A page's title begins with its notebook's number."
    found = re.match(r"\d+", app.env.docname.split("/")[-1])
    title = doctree.next_node(nodes.title)
    if found and title:
        title.insert(0, nodes.Text(f"{found[0]} · "))


def describe(app, page, template, context, doctree):
    "What a link to a page shows of it: the line under its title."
    said = doctree and doctree.next_node(nodes.block_quote)
    if said:
        line = f'<meta name="description" content="{escape(said.astext().strip())}">'
        context["metatags"] = context.get("metatags", "") + line


def colab(page, source, place, branch):
    "The line under a notebook's title: how to run it where nothing is installed."
    if not place or LOCAL.search(source):
        return ""
    address = COLAB.format(
        place=place.removeprefix("https://github.com/"), branch=branch, page=page
    )
    install = f"%pip install 'pairuni_nb[notebooks] @ git+{place}'"
    return (
        f'<p class="colab"><a href="{escape(address)}">Open in Colab</a> (untried); '
        f"its first cell: <code>{escape(install)}</code></p>"
    )


def run_elsewhere(app, doctree):
    "Puts that line there."
    file = Path(app.env.doc2path(app.env.docname))
    title = doctree.next_node(nodes.title)
    if file.suffix == ".ipynb" and title:
        line = colab(app.env.docname, file.read_text("utf-8"), app.config.git_url, cfg["branch"])
        title.parent.insert(1, nodes.raw("", line, format="html"))


def setup(app):
    app.add_config_value("git_url", cfg["git_url"], "env")
    app.connect("doctree-read", number, priority=400)  # before titles are collected
    app.connect("doctree-read", run_elsewhere)
    app.connect("doctree-read", in_html)
    app.connect("html-page-context", describe)
    # from a file, the search cannot fetch pages to quote from them
    quiet = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false'
    app.add_js_file(None, body=quiet, priority=300)


parser = ConfigParser(delimiters=["="])
parser.read(HERE.parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
project = html_title = cfg["title"]
author = cfg["author"]
extensions = ["myst_nb", "sphinx_copybutton", "formulas", "api_pages"]
exclude_patterns = ["**.ipynb_checkpoints"]
nb_custom_formats = {".ipynb": "conf.read"}
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "Show the test"
nb_code_prompt_hide = "Hide the test"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
add_module_names = toc_object_entries = False
html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_context = dict(default_mode="auto")
html_favicon = "static/favicon.svg"
html_theme_options = dict(
    show_toc_level=1, collapse_navigation=True, use_download_button=True, navbar_persistent=[]
)
