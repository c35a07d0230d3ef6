"""Real input from two makers: fetch two emoji sets and write them as U and G records.

    python scripts/fetch_emoji.py            # 90 MB once, then data/emoji/u and data/emoji/g
    pairuni pair data/emoji/u data/emoji/g --clusters 80 --out runs/emoji-pairs

U: Google's Noto Emoji (art under Apache-2.0, npm emoji-datasource-google), asked "what is this?" with four names of one category.
G: Microsoft's Fluent Emoji 3D (MIT, npm @lobehub/fluent-emoji-3d), prompted by the name and the short name.
Both sides show the same concepts; an id ends in the concept's code points, so retrieval can be scored against the truth.
Nothing fetched is committed: data/ ignores itself.
"""
import argparse
import hashlib
import io
import json
import random
import tarfile
import urllib.request
from pathlib import Path

from PIL import Image

from pairuni_nb.records_io import save_records, to_rgb

NPM = "https://registry.npmjs.org/"
NOTO = ("emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438")
FLUENT = ("@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58")
SIZE = 64


def fetch(package, folder):
    "The package's archive, downloaded once and checked against its sha256."
    path, sha256 = package
    file = folder / path.rsplit("/", 1)[1]
    if not file.exists():
        print(f"fetching {NPM}{path}")
        with urllib.request.urlopen(NPM + path) as response: content = response.read()
        if hashlib.sha256(content).hexdigest() != sha256: raise SystemExit(f"{NPM}{path} has another sha256 than the pinned {sha256}: not used")
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.rename(file)
    return tarfile.open(file)


def bare(code):
    "A code point sequence without leading zeros and variation selectors: how the two packages' names are matched."
    return "-".join(c.lstrip("0") for c in code.lower().split("-") if c != "fe0f")


def image(archive, name):
    "One picture, 64 pixels, on white."
    picture = to_rgb(Image.open(io.BytesIO(archive.extractfile(name).read())))
    return picture.resize((SIZE, SIZE), Image.LANCZOS) if picture.size != (SIZE, SIZE) else picture


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="folder that gets u/ and g/")
    parser.add_argument("--concepts", type=int, default=400, help="images a side")
    parser.add_argument("--seed", type=int, default=0, help="which concepts, and the wrong choices")
    args = parser.parse_args()
    data = Path("data")
    data.mkdir(exist_ok=True)
    (data / ".gitignore").write_text("*\n")
    noto, fluent = fetch(NOTO, data), fetch(FLUENT, data)
    drawn = {bare(Path(n).stem): n for n in fluent.getnames() if n.endswith(".webp")}
    table = json.load(noto.extractfile("package/emoji.json"))
    # no flags: the Fluent package fills them in from another maker
    emoji = {bare(e["unified"]): e for e in table if e["name"] and e["has_img_google"] and e["category"] != "Flags" and bare(e["unified"]) in drawn}
    rng = random.Random(args.seed)
    concepts = sorted(rng.sample(sorted(emoji), args.concepts))
    u, g = [], []
    for code in concepts:
        e = emoji[code]
        name, short = e["name"].lower(), e["short_name"].replace("_", " ").replace("-", " ")
        others = sorted({o["name"].lower() for o in emoji.values() if o["category"] == e["category"]} - {name})
        choices = [name] + rng.sample(others, 3)
        rng.shuffle(choices)
        prompt = name if short in name else f"{name}, {short}"
        u.append(dict(id=f"noto-{code}", image=image(noto, f"package/img/google/64/{e['image']}"), question="what is this?", choices=choices, answer=name, scene=""))
        g.append(dict(id=f"fluent-{code}", image=image(fluent, drawn[code]), prompt=prompt, scene=""))
    for rows, side in ((u, "u"), (g, "g")):
        save_records(rows, args.out / side)
        print(f"{len(rows)} records in {args.out / side}")


if __name__ == "__main__":
    main()
