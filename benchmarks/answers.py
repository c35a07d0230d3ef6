"""Which answers RL can move, by kind of picture: greedy, sampled, one right of 16; answers.csv.

    pairuni ablate weighting --rows none --seeds 5 6 7 8 9   # trains the reference
    python benchmarks/answers.py runs/ablate --seeds 5 6 7 8 9

The start and the main job's model, on each seed's 500 held-out questions and on 500 of those that
it was trained on. Lines that the CSV already holds are not made again.
"""

import argparse
import json
from pathlib import Path

import torch
from rows import append, read

from pairuni_nb.ablate import sources
from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.rewards import answer_accuracy, reward_matrix
from pairuni_nb.rollout import Sampling, noise
from pairuni_nb.settings import preset
from pairuni_nb.world import KINDS, question_text

CSV = Path(__file__).with_suffix(".csv")
MODELS = {"start": None, "pair-grpo": "reference"}  # name, and of its run folder
TRIES = 16
CHUNK = 100  # questions at a time


def hits(policy, records, k, temperature, seed):  # -> (questions, k), 1 where right
    "k answers to each question, judged."
    found, sampling = [], Sampling(temperature)
    for i in range(0, len(records), CHUNK):
        part = records[i : i + CHUNK]
        asked = [r["question"] for r in part]
        texts = [question_text(r["question"], r["choices"]) for r in part]
        prompts = policy.text_prompts(texts, [r["image"] for r in part])
        uniforms = noise(seed, 0, range(i, i + len(part)), k, sampling.max_new_tokens)
        answers = policy.texts(policy.sample(prompts, k, uniforms, sampling))
        found.append(reward_matrix(answer_accuracy, asked, answers, part, k))
    return torch.cat(found)


def by_kind(policy, records, seed, tries=TRIES):  # -> lines
    "What a policy answers, for each kind of picture."
    greedy = hits(policy, records, 1, 0.0, seed)[:, 0]
    sampled = hits(policy, records, tries, 1.0, seed)
    kinds, lines = [json.loads(r["scene"])["kind"] for r in records], []
    for kind in KINDS:
        own = torch.tensor([k == kind for k in kinds])
        if not own.any():
            continue
        scores = dict(greedy=greedy[own], sampled=sampled[own], reached=sampled[own].amax(1))
        told = {name: round(x.mean().item(), 4) for name, x in scores.items()}
        lines.append(dict(kind=kind, questions=int(own.sum())) | told)
    return lines


def answer_all(runs, seeds, file, base):
    "Each line that the CSV does not hold yet, of every run that is there."
    there = {(r["model"], int(r["seed"])) for r in read(file)}
    for seed in seeds:
        u, _, held, _ = sources(base, seed)
        for model, run in MODELS.items():
            checkpoint = run and runs / f"{run},seed={seed}" / "checkpoint"
            if checkpoint and not checkpoint.exists():
                print(f"{model} of seed {seed} left out: no {checkpoint}")
                continue
            if (model, seed) in there:
                continue
            policy = policy_for(*load_checkpoint(checkpoint))
            for name, records in (("held out", held), ("trained on", u[: len(held)])):
                for line in by_kind(policy, records, seed):
                    append(file, dict(model=model, seed=seed, pictures=name) | line)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what `pairuni ablate --out` made")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    answer_all(args.folder / "runs", args.seeds, CSV, preset("nano"))


if __name__ == "__main__":
    main()
