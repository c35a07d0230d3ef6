"""Real input from two makers: fetch two emoji sets and write them as U and G records.

    python scripts/fetch_emoji.py            # 97 MB once, then data/emoji/u and data/emoji/g, 1,500 records each
    pairuni pair data/emoji/u data/emoji/g --clusters 80 --out runs/emoji-pairs

U: Google's Noto Emoji (art under Apache-2.0, npm emoji-datasource-google). By a seeded coin a record asks "what is this?"
(four names of one group) or "which group?" (four groups).
G: Microsoft's Fluent Emoji 3D (MIT, npm @lobehub/fluent-emoji-3d), prompted by the name and up to four tags.
Names, tags, groups and subgroups were given by others (npm emojibase-data, MIT; from Unicode's CLDR).
Both sides show the same concepts. A record carries `code` (the concept's code points), `name`, `tags`, `group` and `subgroup`
beside the columns that `pairuni pair` reads, so that retrieval can be scored against the truth.
Nothing fetched is committed: data/ ignores itself.
"""
import argparse
import hashlib
import io
import json
import random
import re
import tarfile
import urllib.request
from pathlib import Path

from PIL import Image

from pairuni_nb.records_io import save_records, to_rgb

NPM = "https://registry.npmjs.org/"
NOTO = ("emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438")
FLUENT = ("@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58")
NAMES = ("emojibase-data/-/emojibase-data-17.0.0.tgz", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
SIZE, TAGS = 64, 4


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
    "A code point sequence without leading zeros and variation selectors: how the packages' names are matched."
    return "-".join(c.lstrip("0") for c in code.lower().split("-") if c != "fe0f")


def image(archive, name):
    "One picture, 64 pixels, on white."
    picture = to_rgb(Image.open(io.BytesIO(archive.extractfile(name).read())))
    return picture.resize((SIZE, SIZE), Image.LANCZOS) if picture.size != (SIZE, SIZE) else picture


def concepts(noto, fluent, names):
    "What both artists drew, by code point: facts in others' words, and the two pictures' files."
    drawn = {bare(Path(n).stem): n for n in fluent.getnames() if n.endswith(".webp")}
    files = {bare(e["unified"]): f"package/img/google/64/{e['image']}" for e in json.load(noto.extractfile("package/emoji.json")) if e["has_img_google"]}
    said = json.load(names.extractfile("package/en/messages.json"))
    groups, subgroups = [{m["order"]: m for m in said[kind]} for kind in ("groups", "subgroups")]
    out = {}
    for e in json.load(names.extractfile("package/en/data.json")):
        code, group = bare(e["hexcode"]), groups[e["group"]]["key"] if "group" in e else "component"
        # no flags: the Fluent package fills them in from another maker; no components: they are parts of emoji
        if code not in drawn or code not in files or group in ("flags", "component"): continue
        out[code] = dict(code=code, name=e["label"].lower(), tags=[t.lower() for t in e.get("tags", [])], group=groups[e["group"]]["message"],
                         subgroup=subgroups[e["subgroup"]]["key"], noto=files[code], fluent=drawn[code])
    return out


def question(concept, everything, rng):
    "What it is, or which group it belongs to; the wrong choices for a name come from its own group."
    by_name = rng.random() < .5
    what, key = ("what is this?", "name") if by_name else ("which group?", "group")
    others = sorted({c[key] for c in everything if not by_name or c["group"] == concept["group"]} - {concept[key]})
    choices = [concept[key]] + rng.sample(others, 3)
    rng.shuffle(choices)
    return dict(question=what, choices=choices, answer=concept[key])


def prompt(concept):
    "The name, then the first tags that say something new."
    words = lambda text: set(re.findall(r"\w+", text))
    tags = [t for t in concept["tags"] if not words(t) <= words(concept["name"])]
    return ", ".join([concept["name"]] + tags[:TAGS])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="folder that gets u/ and g/")
    parser.add_argument("--concepts", type=int, default=0, help="concepts, so images a side; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which concepts, which questions, and the wrong choices")
    args = parser.parse_args()
    data = Path("data")
    data.mkdir(exist_ok=True)
    (data / ".gitignore").write_text("*\n")
    noto, fluent, names = [fetch(package, data) for package in (NOTO, FLUENT, NAMES)]
    found = concepts(noto, fluent, names)
    rng = random.Random(args.seed)
    codes = sorted(rng.sample(sorted(found), args.concepts) if args.concepts else found)
    u, g = [], []
    for concept in (found[code] for code in codes):
        facts = {k: concept[k] for k in ("code", "name", "tags", "group", "subgroup")} | dict(scene="")
        u.append(dict(id=f"noto-{concept['code']}", image=image(noto, concept["noto"])) | question(concept, found.values(), rng) | facts)
        g.append(dict(id=f"fluent-{concept['code']}", image=image(fluent, concept["fluent"]), prompt=prompt(concept)) | facts)
    for rows, side in ((u, "u"), (g, "g")):
        save_records(rows, args.out / side)
        print(f"{len(rows)} records in {args.out / side}")


if __name__ == "__main__":
    main()
