"""A page a module, nbs/api/*.md, from its source: signatures, comments (docments), docstrings.

The package is read, not imported, so nothing of it need be installed.
"""

import ast
import json
import re
from io import StringIO
from pathlib import Path
from tokenize import COMMENT, generate_tokens

SERIES = {"learn": "Start here", "": "The method", "data": "Data and judges", "run": "Running it"}
# a function or class where it is defined, a name that is called or given a value
NAMES = re.compile(
    r'<span class="(nf|nc|n)">(\w+)</span>(<span class="p">\(| <span class="o">=</span>|)'
)
CODE = re.compile(r"(`[^`\n]+`)")


def comments(source: str) -> dict:  # line -> text, and whether it stands there alone
    "The comments of some source."
    found = {}
    for token in generate_tokens(StringIO(source).readline):
        if token.type == COMMENT:
            alone = token.line.lstrip().startswith("#")
            found[token.start[0]] = (token.string.removeprefix("#").strip(), alone)
    return found


def comment_of(node: ast.AST, notes: dict) -> str:
    "The comment behind a parameter, a field or a value, or the lines above it."
    if node.end_lineno in notes:
        return notes[node.end_lineno][0]
    lines, line = [], node.lineno - 1
    while line in notes and notes[line][1]:
        lines.insert(0, notes[line][0])
        line -= 1
    return " ".join(lines)


def plain(text: str) -> str:
    "Markdown that shows the text as it stands; code in backticks stays code."
    parts = re.split(CODE, text)
    parts[::2] = [re.sub(r"([\\*_<$\[|])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def in_table(text: str) -> str:
    "The same in a table's cell, where a bar would end the cell."
    parts = re.split(CODE, plain(text))
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "".join(parts)


def table(rows: list) -> list:  # of (what, its comment) -> lines
    "What each argument is."
    if not any(note for _, note in rows):
        return []
    lines = [f"| {in_table(f'`{what}`')} | {in_table(note)} |" for what, note in rows]
    return ["", "| argument | what it is |", "|---|---|", *lines, ""]


def arguments(f: ast.FunctionDef, notes: dict) -> list:  # of (what, its comment)
    "A function's parameters and what it returns."
    a = f.args
    parts = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs]
    named = [(ast.unparse(part), part) for part in parts if part.arg not in ("self", "cls")]
    if f.returns:
        named.append((f"-> {ast.unparse(f.returns)}", f.returns))
    owner = {part.end_lineno: part for _, part in named}  # the last of a line has its comment
    return [(t, comment_of(x, notes) if owner[x.end_lineno] is x else "") for t, x in named]


def signature(f: ast.FunctionDef) -> str:
    "Names and defaults; types stand in the table."
    for part in ast.walk(f.args):
        if isinstance(part, ast.arg):
            part.annotation = None
    inside = ast.unparse(f.args)
    return f"{f.name}({re.sub(r'^(self|cls)(, )?', '', inside)})"


def fields(c: ast.ClassDef, notes: dict) -> list:  # of (what, its comment)
    "A class's annotated fields."
    parts = [part for part in c.body if isinstance(part, ast.AnnAssign)]
    return [(ast.unparse(part), comment_of(part, notes)) for part in parts]


def directive(kind: str, head: str, body: list, depth: int = 3) -> list:
    "A block of the Python domain, so that search and links know the name."
    fence = ":" * depth
    return [f"{fence}{{py:{kind}}} {head}", *body, fence, ""]


def function(f, notes, where, kind="function") -> list:
    "A function's lines."
    body = ["", plain(ast.get_docstring(f) or ""), where, *table(arguments(f, notes))]
    return directive(kind, f.name if kind == "property" else signature(f), body)


def methods(c: ast.ClassDef, tree: ast.Module) -> list:
    "A class's public methods, those of later cells among them (`@patch_to`)."
    own = [part for part in c.body if isinstance(part, ast.FunctionDef)]
    later = [part for part in tree.body if isinstance(part, ast.FunctionDef)]
    patch = f"patch_to({c.name})"
    own += [f for f in later if patch in [ast.unparse(d) for d in f.decorator_list]]
    setters = [f"{f.name}.setter" for f in own]
    own = [f for f in own if not {ast.unparse(d) for d in f.decorator_list} & {*setters}]
    return [f for f in own if not f.name.startswith("_") or f.name == "__call__"]


def a_class(c, notes, where, tree) -> list:
    "A class's lines."
    body = ["", plain(ast.get_docstring(c) or ""), where, *table(fields(c, notes))]
    made = [f for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    for f in made:
        body += table(arguments(f, notes))
    for f in methods(c, tree):
        getter = "property" in [ast.unparse(d) for d in f.decorator_list]
        body += function(f, notes, "", "property" if getter else "method")
    head = signature(made[0]).replace("__init__", c.name) if made else c.name
    return directive("class", head, body, depth=4)


def page_of(source: str) -> str:  # "02_pair_grpo"
    "The page of the notebook that a module is exported from."
    return re.search(r"File to edit: \.\./nbs/(.+)\.ipynb", source)[1]


def targets(part: ast.Assign) -> list:
    "The names that get a value: A = .., or A, B = .."
    return [t.id for t in ast.walk(part.targets[0]) if isinstance(t, ast.Name)]


def exported(tree: ast.Module) -> dict:  # name -> its definition
    "What a module exports, in its own order."
    names, found = [], {}
    for part in tree.body:
        if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
            found[part.name] = part
        elif isinstance(part, ast.Assign):
            found |= dict.fromkeys(targets(part), part)
            if targets(part) == ["__all__"]:
                names = ast.literal_eval(part.value)
    return {name: part for name, part in found.items() if name in names}


def module_page(name: str, source: str) -> str:
    "A module's page as Markdown."
    tree, notes, page = ast.parse(source), comments(source), page_of(source)
    subtitle = ast.get_docstring(tree) or ""  # Markdown, from the notebook
    lines = [f"# {name}", "", f"> {subtitle}", "", f"Explained in {{doc}}`/{page}`.", ""]
    lines += [f"```{{py:module}} pairuni_nb.{name}", "```", ""]
    for own, part in exported(tree).items():
        place = targets(part)[-1] if isinstance(part, ast.Assign) else own
        where = f'<a class="told" href="../{page}.html#def-{place}">explained in {page}</a>'
        if isinstance(part, ast.FunctionDef):
            lines += function(part, notes, where)
        elif isinstance(part, ast.ClassDef):
            lines += a_class(part, notes, where, tree)
        else:
            value = ast.unparse(part.value)
            alone = len(targets(part)) == 1 and len(value) < 80 and "`" not in value
            short = [f"`{value}`"] if alone else []
            body = ["", *short, plain(comment_of(part, notes)), where]
            lines += directive("data", own, body)
    return "\n".join(lines)


def front(pages: dict) -> str:  # module -> its subtitle and notebook
    "The list of modules."
    lines = ["# The library", "", "Every module with what it exports. A definition in a notebook"]
    lines += [
        "links to its entry here, and the entry to the notebook that explains it.",
        "{ref}`Every name <genindex>` in one list.",
        "",
    ]
    for folder, title in SERIES.items():
        rows = [
            f"| [{name}]({name}.md) | {subtitle} |"
            for name, (subtitle, page) in pages.items()
            if folder == "/".join(page.split("/")[:-1])
        ]
        lines += [f"## {title}", "", "| module | what it does |", "|---|---|", *rows, ""]
    return "\n".join([*lines, "```{toctree}", ":hidden:", *pages, "```", ""])


def write_pages(app):
    "Writes what changed, and takes away what no module is behind any more."
    root = Path(app.confdir).parent
    files = (root / "pairuni_nb").glob("[a-z]*.py")
    sources = {file.stem: file.read_text(encoding="utf-8") for file in files}
    order = sorted(sources, key=lambda name: page_of(sources[name]))
    trees = {name: ast.parse(sources[name]) for name in order}
    told = {name: page_of(sources[name]) for name in order}
    subtitles = {name: (ast.get_docstring(trees[name]) or "", told[name]) for name in order}
    made = {f"{name}.md": module_page(name, sources[name]) for name in order}
    made["index.md"] = front(subtitles)
    out = root / "nbs" / "api"
    out.mkdir(exist_ok=True)
    for file in out.glob("*.md"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        file = out / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    app.api = {name: (told[name], set(exported(trees[name]))) for name in order}


def known(app, page: str) -> dict:  # name -> its module
    "What a page's notebook exports or imports."
    names = {n: module for module, (told, own) in app.api.items() if told == page for n in own}
    file = Path(app.env.doc2path(page))
    if file.suffix == ".ipynb":
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        imports = re.findall(r"^from pairuni_nb\.(\w+) import (\([^)]*\)|.*)", code, re.M)
        for module, listed in imports:
            names |= {n: module for n in re.findall(r"\w+", listed) if n in app.api[module][1]}
    return names


def link_code(app, page, template, context, doctree):
    "Definitions and calls in a page's code link to their entries, and entries to definitions."
    names, defined = known(app, page) if doctree else {}, set()

    def link(match):
        kind, name, after = match.groups()
        if name not in names or (kind == "n" and not after):
            return match[0]
        entry = f"api/{names[name]}.html#pairuni_nb.{names[name]}.{name}"
        shown, defines = match[0].removesuffix(after), kind != "n" or "=" in after
        if defines and app.api[names[name]][0] == page and name not in defined:
            defined.add(name)
            shown = shown.replace("<span", f'<span id="def-{name}"')
        return f'<a class="api" href="{"../" * page.count("/")}{entry}">{shown}</a>{after}'

    if names:
        context["body"] = re.sub(NAMES, link, context["body"])


def setup(app):
    app.connect("builder-inited", write_pages)
    app.connect("html-page-context", link_code)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
