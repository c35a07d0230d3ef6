"The site: `sphinx-build -c docs nbs _site`, then open _site/index.html."

import re
import sys
from pathlib import Path

import nbformat

# directive of a cell -> tag of its page
FOLDED = {"default_exp": "remove-cell", "hide": "remove-cell", "test": "hide-input"}


def read(text):
    "A notebook without nbdev's directives; tests are folded."
    nb = nbformat.reads(text, as_version=4)
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        words = re.findall(r"^#\| *(\w+)", cell.source, re.M)
        cell.metadata.tags = [FOLDED[word] for word in words if word in FOLDED]
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        # an explorer is its picture: no kernel moves its sliders
        for output in cell.outputs:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return nb


sys.path.insert(0, str(Path(__file__).parent))  # for conf.read
project = html_title = "pairuni_nb"
author = "pairuni_nb contributors"
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["**.ipynb_checkpoints"]
nb_custom_formats, nb_execution_mode = {".ipynb": "conf.read"}, "off"
nb_code_prompt_show, nb_code_prompt_hide = "Show the test", "Hide the test"
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath"], 3
html_theme, html_static_path, html_css_files = "sphinx_book_theme", ["static"], ["site.css"]
html_theme_options = dict(show_toc_level=1, use_download_button=True)
