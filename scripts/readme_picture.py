"""The README's picture, docs/one_pair.png: what learn/00_one_pair shows of its twenty steps.

python scripts/readme_picture.py    # after executing that notebook
"""

from base64 import b64decode
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "one_pair.png"
SHOWS = "From six messes to six times five red triangles"


def picture() -> bytes:
    "The PNG that the cell with that title left."
    notebook = nbformat.read(ROOT / "nbs/learn/00_one_pair.ipynb", as_version=4)
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and SHOWS in c.source]
    (data,) = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return b64decode(data)


if __name__ == "__main__":
    PICTURE.write_bytes(picture())
