"""How the notebooks read: lines, functions and cells that are too large, imports that run up.

    python scripts/readability.py          # a row for each notebook, then the whole
    python scripts/readability.py --list   # the places behind the counts

Goals: no line over 100 characters, no comprehension inside a comprehension, no lambda with a name,
no import that runs up; no exported function over 40 lines (the training loop: 60); one definition
an export cell. It ends with exit code 1 where one of these is missed.
"""

import argparse
import ast
import json
import sys
from collections import Counter
from pathlib import Path

from pairuni_nb.testgen import backward_imports, notebooks

ROOT = Path(__file__).parents[1]
WIDTH, CELL, FUNCTION, LOOP = 100, 20, 40, 60
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FAULTS = ("wide", "nested", "lambdas", "large cells", "crowded", "long functions")
COLUMNS = (
    "lines",
    "wide",
    "nested",
    "lambdas",
    "export",
    "large cells",
    "crowded",
    "long functions",
)


def source(cell):
    "A cell's text."
    return "".join(cell["source"])


def code_cells(path):
    "The code cells of a notebook; those with magics are left out, as Python cannot parse them."
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    code = [source(c) for c in cells if c["cell_type"] == "code"]
    return [s for s in code if not any(line.startswith(("%", "!")) for line in s.splitlines())]


def nested(tree):
    "Comprehensions that hold another one."
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            if any(isinstance(n, COMPREHENSIONS) and n is not node for n in ast.walk(node)):
                yield node


def named_lambdas(tree):
    "Lambdas that get a name."
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            yield node


def definitions(tree):
    "Functions and classes at the top of a cell, but not one-line companions."
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n for n in tree.body if isinstance(n, kinds) and n.end_lineno - n.lineno > 3]


def exported_faults(tree, size):
    "What is too much in an export cell: kind and node."
    own = definitions(tree)
    imports = all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)
    if size > CELL and len(own) != 1 and not imports:
        yield "large cells", tree.body[0]
    if len(own) > 1:
        yield "crowded", own[1]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            most = LOOP if node.name in ("train", "take_steps") else FUNCTION
            if node.end_lineno - node.lineno >= most:
                yield "long functions", node


def measure(path):
    "Counts of one notebook, and the places behind them."
    counts, places = Counter(), []
    for text in code_cells(path):
        lines, tree = text.splitlines(), ast.parse(text)
        counts["lines"] += sum(bool(line.strip()) for line in lines)
        found = [("wide", line) for line in lines if len(line) > WIDTH]
        found += [("nested", lines[node.lineno - 1]) for node in nested(tree)]
        found += [("lambdas", lines[node.lineno - 1]) for node in named_lambdas(tree)]
        if "#| export" in lines[:2]:
            counts["export"] += 1
            size = sum(bool(line.strip()) for line in lines) - 1
            found += [(kind, lines[n.lineno - 1]) for kind, n in exported_faults(tree, size)]
        counts.update(kind for kind, _ in found)
        places += found
    return counts, places


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="show the places behind the counts")
    parser.add_argument("notebooks", nargs="*", help="parts of names; default: all")
    args = parser.parse_args()
    total = Counter()
    print(f"{'':32}" + "".join(f"{name:>15}" for name in COLUMNS))
    for name, path in notebooks(ROOT / "nbs").items():
        if args.notebooks and not any(part in name for part in args.notebooks):
            continue
        counts, places = measure(path)
        total += counts
        print(f"{name:32}" + "".join(f"{counts[column]:15}" for column in COLUMNS))
        if args.list:
            for kind, line in places:
                print(f"    {kind}: {line.strip()[:110]}")
    print(f"{'all':32}" + "".join(f"{total[column]:15}" for column in COLUMNS))
    up = backward_imports(ROOT / "nbs", "pairuni_nb")
    print(f"imports that run up: {len(up)}", *up, sep="\n")
    if up or any(total[kind] for kind in FAULTS):
        sys.exit(1)


if __name__ == "__main__":
    main()
