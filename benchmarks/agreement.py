"""Do understanding and drawing pull the shared weights one way? One CSV row a question.

    OMP_NUM_THREADS=1 python benchmarks/agreement.py nano
    OMP_NUM_THREADS=1 python benchmarks/agreement.py nano --cfg-weight 5 --cfg-scoring guided
    OMP_NUM_THREADS=1 python benchmarks/agreement.py nano-emu3

For 48 aligned and 144 retrieved pairs (delta 0, so similarities are spread), K = 16: the policy
gradient of each side alone, over the weights of the language model, with weight 1. `cosine` is that
of a pair's two gradients (mean, standard error, median); `other pairs` is the same for sides that
are not partners. `whole` is the cosine of the mean U with the mean G gradient, beside the cosines
of random halves of one side with each other (the mean of 20 splits) and the `ceiling` that two
sides that pull alike would reach. About 4 minutes a model. Writes benchmarks/agreement.csv.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from pairuni_nb.pairing import make_pairs
from pairuni_nb.prepare import prepare
from pairuni_nb.settings import preset
from pairuni_nb.step import backward_passes, ceiling, roll_out_sides
from pairuni_nb.train import default_rewards
from pairuni_nb.world import records

CSV = Path(__file__).with_suffix(".csv")
SEED = 7


def chosen_pairs(rng, aligned, retrieved):
    "Pairs of the toy world of every similarity, and the numbers of some of each kind."
    sides = records("u", 2000, SEED), records("g", 2000, SEED)
    pairs, _ = make_pairs(*sides, seed=SEED, delta=0.0, top_n=200)
    kinds = np.array(pairs["kind"])
    numbers = []
    for kind, n in (("aligned", aligned), ("retrieved", retrieved)):
        numbers += rng.choice(np.flatnonzero(kinds == kind), n, replace=False).tolist()
    return pairs, numbers


def gradients(policy, row, number, s, rewards, accelerator):
    "Both sides' gradients of one pair over the language model, each as a vector."
    sides, _ = roll_out_sides(policy, [row], [number], 0, s, rewards)
    _, _, parts = backward_passes(policy, sides, s, accelerator, False, True)
    vectors = []
    for task in "ug":
        gradient = parts[task, 0]
        trunk = {id(p) for p in policy.language_model.parameters()}
        names = [n for n, p in policy.named_parameters() if id(p) in trunk and n in gradient]
        flat = [gradient[n].flatten() for n in names]
        vectors.append(torch.cat(flat))
    return vectors


def halves(x, rng, splits=20):
    "Cosine of the means of two random halves, over some splits."
    found = []
    for _ in range(splits):
        order = torch.from_numpy(rng.permutation(len(x)))
        a, b = x[order[: len(x) // 2]].mean(0), x[order[len(x) // 2 :]].mean(0)
        found.append(torch.cosine_similarity(a, b, dim=0).item())
    return float(np.mean(found))


def of_pairs(cosines):
    "Mean, standard error, median."
    spread = cosines.std(ddof=1) / len(cosines) ** 0.5
    return dict(n=len(cosines), mean=cosines.mean(), se=spread, median=np.median(cosines))


def measure(model, s, aligned, retrieved):
    "Rows of the CSV."
    torch.manual_seed(0)
    rng, accelerator = np.random.default_rng(0), Accelerator(cpu=True)
    policy = prepare(model, s, accelerator).sampler
    policy.requires_grad_(True)
    pairs, numbers = chosen_pairs(rng, aligned, retrieved)
    rewards = default_rewards(policy, pairs)
    u, g, kept = [], [], []
    for i in numbers:
        own_u, own_g = gradients(policy, pairs[i], i, s, rewards, accelerator)
        if own_u.norm() > 0 and own_g.norm() > 0:  # flat groups have no direction
            u.append(own_u)
            g.append(own_g)
            kept.append(i)
    u, g = torch.stack(u), torch.stack(g)
    norm_u, norm_g = u.norm(dim=1), g.norm(dim=1)
    cosines = ((u / norm_u[:, None]) @ (g / norm_g[:, None]).T).numpy()
    partners = cosines.diagonal()
    kinds, s_p = np.array(pairs["kind"])[kept], np.array(pairs["similarity"])[kept]
    others = cosines[~np.eye(len(kept), dtype=bool)]
    told = {f"cosine, {k}": of_pairs(partners[kinds == k]) for k in ("aligned", "retrieved")}
    cuts = np.quantile(s_p[kinds == "retrieved"], [0, 0.25, 0.5, 0.75, 1])
    for low, high in zip(cuts, cuts[1:]):
        inside = (kinds == "retrieved") & (s_p >= low) & (s_p <= high)
        told[f"cosine, s {low:.2f} to {high:.2f}"] = of_pairs(partners[inside])
    told["cosine, other pairs"] = of_pairs(others)
    told["norm of a pair's U gradient"] = of_pairs(norm_u.numpy())
    told["norm of a pair's G gradient"] = of_pairs(norm_g.numpy())
    whole = dict(whole=torch.cosine_similarity(u.mean(0), g.mean(0), dim=0).item())
    whole |= {"halves of U": halves(u, rng), "halves of G": halves(g, rng)}
    whole["ceiling"] = ceiling(whole["halves of U"], whole["halves of G"])
    return told | {name: dict(n=len(kept), mean=value) for name, value in whole.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset")
    parser.add_argument("--checkpoint", help="another start than the preset's")
    parser.add_argument("--cfg-weight", type=float)
    parser.add_argument("--cfg-scoring")
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--pairs", type=int, nargs=2, default=(48, 144), help="aligned, retrieved")
    args = parser.parse_args()
    chosen = preset(args.preset)
    asked = dict(cfg_weight=args.cfg_weight, cfg_scoring=args.cfg_scoring)
    changes = {name: value for name, value in asked.items() if value is not None}
    s = replace(chosen.train, rollouts=args.rollouts, weighting="none", seed=SEED, **changes)
    how = dict(model=args.checkpoint or args.preset, guidance=s.cfg_weight, scoring=s.cfg_scoring)
    how["K"] = s.rollouts
    rows = list(csv.DictReader(CSV.open())) if CSV.exists() else []
    rows = [r for r in rows if any(r[name] != str(value) for name, value in how.items())]
    for question, told in measure(args.checkpoint or chosen.model or None, s, *args.pairs).items():
        numbers = {n: x if n == "n" else round(float(x), 5) for n, x in told.items()}
        rows.append(how | dict(question=question) | numbers)
        print(rows[-1], flush=True)
    with CSV.open("w", newline="") as f:
        columns = [*how, "question", "n", "mean", "se", "median"]
        writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
