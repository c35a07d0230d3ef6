"""Are pairs better data for plain supervised training, too? The paper's rows without RL (BAGEL).

    OMP_NUM_THREADS=1 python benchmarks/sft_pairs.py run
    python benchmarks/sft_pairs.py table

Every family learns answers and drawings one to one: a step takes a batch of pairs, and from each
pair the answer to its question and the picture of its prompt. Three kinds of data, as many pairs
and steps of each, none seen twice: `pairs` (Algorithm 1: aligned and retrieved), `random` ones, and
`dealt`: the very items of `pairs`, each with another's partner. `pairs` against `random` asks for
both of what pairing does, which items it takes and who stands beside whom; `pairs` against `dealt`
for the second alone.

Each seed has its own records, order and fresh held-out items. The start is the shipped checkpoint,
which was taught some wrong facts at the end of its own warm start and so has something to learn.
Steps and learning rate were chosen on seed 100. Rows that the CSV already holds are not run again.
"""

import argparse
import functools
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from rows import append, quiet, read

from pairuni_nb.ablate import smallest_effect
from pairuni_nb.diffusion import DiffusionPolicy, filled, load_checkpoint, masked_loss, policy_for
from pairuni_nb.emu3 import Emu3Policy, drawing_examples, film_codes, mean_loss, text_examples
from pairuni_nb.evaluate import evaluate, fresh_scenes, interval
from pairuni_nb.janus import answer_text, rehearse, to_pixels, to_tokens
from pairuni_nb.pairing import pair_records
from pairuni_nb.rollout import Sampling
from pairuni_nb.settings import PairSettings, preset
from pairuni_nb.step import rows_of_step
from pairuni_nb.world import Scene, question, question_text, records

CSV = Path(__file__).with_suffix(".csv")
NAMES = ("janus-nano", "nano-emu3", "nano-diffusion")
PRESET = {"janus-nano": "nano"}  # where it has another name than the checkpoint
DATA = ("pairs", "random", "dealt")
STEPS, BATCH, LR, HELD, HIDDEN = 60, 16, 2e-4, 200, 0.1
SIDES = dict(accuracy="answers", score="drawing")


@functools.lru_cache(2)
def rows_of(mix, seed):
    "Every pair of a mix, from the seed's records, in the seed's order."
    s = PairSettings(mix=mix, seed=seed)
    rows, _ = pair_records(records("u", 2000, seed), records("g", 2000, seed), s)
    order = np.random.default_rng([seed, 6]).permutation(len(rows))
    return [rows[i] for i in order]


def pairs_of(data, seed, n):
    "n pairs of a kind."
    rows = rows_of("random" if data == "random" else "pairs", seed)[:n]
    if len(rows) < n:
        raise SystemExit(f"seed {seed} makes {len(rows)} pairs of {data}, not {n}: ask for fewer")
    if data != "dealt":
        return rows
    own = ("g_image", "g_scene", "g_id", "prompt")
    partners = rows[1:] + rows[:1]  # they are in a random order
    return [row | {k: other[k] for k in own} for row, other in zip(rows, partners)]


def thought(row):
    "The answer to learn with its evidence, which a pair does not carry and its scene tells."
    scene, rng = Scene.from_json(row["u_scene"]), np.random.default_rng(0)
    while True:
        asked = question(scene, rng)
        if (asked["question"], asked["answer"]) == (row["question"], row["answer"]):
            return answer_text(asked)


def codes_of(policy, rows):
    "Codes of the pictures to draw: (n, T)."
    encode = film_codes if isinstance(policy, Emu3Policy) else to_tokens
    pixels = to_pixels(np.stack([np.asarray(row["g_image"]) for row in rows]))
    return encode(policy.model.model.vqmodel, pixels).long()


def losses_of(policy, rows, codes, rng):
    "What a batch of pairs has to teach, by side."
    asked = [question_text(row["question"], row["choices"]) for row in rows]
    told = [thought(row) for row in rows]
    answers = text_examples(policy, asked, [row["u_image"] for row in rows], told)
    hidden = torch.from_numpy(rng.random(len(rows)) < HIDDEN)
    drawings = drawing_examples(policy, [row["prompt"] for row in rows], codes, hidden)
    if not isinstance(policy, DiffusionPolicy):
        return dict(u=mean_loss(policy, answers), g=mean_loss(policy, drawings))
    places = policy.model.generation_config.max_new_tokens
    answers = filled(answers, places, int(policy.eos[0]))
    return dict(u=masked_loss(policy, answers, rng), g=masked_loss(policy, drawings, rng))


def fine_tune(policy, rows, seed, lr=LR):
    "Go down both sides' losses, a batch of pairs a step, each pair once."
    codes, rng = codes_of(policy, rows), np.random.default_rng([seed, 7])
    steps = len(rows) // BATCH
    batches = iter(rows_of_step(len(rows), BATCH, seed, step) for step in range(steps))

    def losses():
        ids = next(batches)
        return losses_of(policy, [rows[i] for i in ids], codes[ids], rng)

    policy.model.requires_grad_(True)
    rehearse(policy.model, losses, steps, lr, quiet)


def scores(policy, name, seed, n):
    "Both sides on the seed's held-out items, decoded as the family's preset does."
    held = fresh_scenes(n, seed)
    sampling = Sampling.of(preset(PRESET.get(name, name)).train)
    return evaluate(policy, *held, sampling, seed)["figures"]


def run(name, data, seed, rows, lr=LR, steps=STEPS, n=HELD):
    "One run; its CSV row. `rows`: what the CSV holds, so that a start is scored once."
    began, policy = time.process_time(), policy_for(*load_checkpoint(name))
    row = dict(model=name, data=data, seed=seed, steps=steps, held=n)
    same = [r for r in rows if all(r[k] == str(row[k]) for k in ("model", "seed", "held"))]
    before = scores(policy, name, seed, n) if not same else None
    fine_tune(policy, pairs_of(data, seed, steps * BATCH), seed, lr)
    after = scores(policy, name, seed, n)
    for key in SIDES:
        was = round(before[f"{key}_mean"], 4) if before else same[0][f"{key}_before"]
        row |= {f"{key}_before": was, f"{key}_after": round(after[f"{key}_mean"], 4)}
    return row | dict(cpu_seconds=round(time.process_time() - began, 1))


def rises(rows, name, data, key):
    "seed -> points."
    own = [r for r in rows if (r["model"], r["data"]) == (name, data)]
    return {r["seed"]: 100 * (float(r[f"{key}_after"]) - float(r[f"{key}_before"])) for r in own}


def lines_of(rows):
    "Markdown: each family and side, what each kind of data raised, and pairs above the others."
    lines = ["| family | side | data | rise, points | pairs above it | would have been seen |"]
    lines.append("|---|---|---|---|---|---|")
    for name, (key, side), data in itertools.product(NAMES, SIDES.items(), DATA):
        own, pairs = rises(rows, name, data, key), rises(rows, name, "pairs", key)
        if len(own) < 2:
            continue
        mean, half = interval(list(own.values()))
        told = [name, side, data, f"{mean:+.1f} ± {half:.1f}"]
        apart = [pairs[seed] - own[seed] for seed in own if seed in pairs and data != "pairs"]
        if len(apart) > 1:
            mean, half = interval(apart)
            told += [f"{mean:+.1f} ± {half:.1f}", f"{smallest_effect(apart):.1f}"]
        lines.append(f"| {' | '.join(told + [''] * (6 - len(told)))} |")
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "table":
        return print(*lines_of(read(CSV)), sep="\n")
    for seed, data, name in itertools.product(args.seeds, args.data, args.models):
        there = [(r["model"], r["data"], r["seed"]) for r in read(CSV)]
        if (name, data, str(seed)) not in there:
            append(CSV, run(name, data, seed, read(CSV)))


if __name__ == "__main__":
    main()
