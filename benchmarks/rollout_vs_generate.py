"""Our sampler against `generate` of transformers: guided image tokens, no top-k, no VQ decoding.

Same process, weights and prompts; runs alternate; the median of each is compared, and beside it
stands the least time that the arithmetic could take: (trunk + head parameters) x rows x tokens x 2
flops, at the matmul rate measured here. Milliseconds are those of the CPU, of one thread: they
leave out what else the machine does.

    OMP_NUM_THREADS=1 python benchmarks/rollout_vs_generate.py

Writes benchmarks/rollout_vs_generate.csv.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
import transformers

from pairuni_nb.janus import load_janus
from pairuni_nb.rollout import JanusPolicy, Sampling, noise
from pairuni_nb.world import records

CSV = Path(__file__).with_suffix(".csv")


def seconds(f):
    start = time.process_time()
    f()
    return time.process_time() - start


def matmul_rate(n=1024, repeats=9):
    "Flops a second of a square matmul"
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def alternate(functions, repeats):
    "Seconds of each function, one run of each in turn, after a warm-up"
    for f in functions:
        f()
    spent = [[] for _ in functions]
    for _ in range(repeats):
        for f, own in zip(functions, spent):
            own.append(seconds(f))
    return spent


def compare(policy, prompts, k, w, repeats):
    "Median, least and most seconds of `generate` and of `sample`"
    batch = policy._tokenize(prompts, generation_mode="image")
    how = dict(generation_mode="image", do_sample=True, top_k=0, guidance_scale=w)
    ready, sampling = policy.image_prompts(prompts), Sampling(cfg_weight=w)
    step = iter(range(10**6))

    def theirs():
        return policy.model.generate(**batch, **how, num_return_sequences=k)

    def ours():
        uniforms = noise(0, next(step), range(len(prompts)), k, policy.image_tokens)
        return policy.sample(ready, k, uniforms, sampling)

    return [(statistics.median(t), min(t), max(t)) for t in alternate([theirs, ours], repeats)]


def shown(median, low, high):
    "Milliseconds."
    return f"{median * 1e3:5.0f} [{low * 1e3:.0f}, {high * 1e3:.0f}]"


def measure(policy, texts, n, k, args, least):
    "One row of the table, printed too."
    theirs, ours = compare(policy, texts[: n // k], k, args.cfg_weight, args.repeats)
    ratio, above = theirs[0] / ours[0], ours[0] / least
    print(
        f"{n:6d}  {n // k:7d} x {k}   {shown(*theirs)}".ljust(44)
        + shown(*ours).ljust(21)
        + f"{ratio:5.2f}  {least * 1e3:9.0f}  {above:12.1f}",
        flush=True,
    )
    row = dict(threads=torch.get_num_threads(), images=n, k=k)
    for name, times in (("generate", theirs), ("ours", ours)):
        for what, t in zip(("ms", "min", "max"), times):
            row[f"{name}_{what}"] = round(t * 1e3)
    return row | dict(ratio=round(ratio, 2), least_ms=round(least * 1e3), repeats=args.repeats)


def save(rows):
    "Write the table."
    with CSV.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    k_help = "rollouts a prompt; 8 as in training, 1: nothing shared"
    parser.add_argument("--k", type=int, nargs="+", default=[8, 1], help=k_help)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cfg-weight", type=float, default=5.0)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    policy, rate = JanusPolicy(*load_janus()), matmul_rate()
    parts = policy.model.model.language_model.layers, policy.model.model.generation_head
    params = sum(p.numel() for part in parts for p in part.parameters())
    texts = [r["prompt"] for r in records("g", max(args.images), seed=0)]
    print(
        f"{torch.get_num_threads()} threads, matmul {rate / 1e9:.0f} Gflop/s, "
        f"{params / 1e6:.2f} M parameters in trunk and head, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, median [min, max] of {args.repeats}"
    )
    print(
        "images  prompts x K   generate, ms         ours, ms             "
        "ratio  least, ms  ours / least"
    )
    rows = []
    for n in args.images:
        # two rows an image, conditional and unconditional
        least = params * 2 * n * policy.image_tokens * 2 / rate
        rows += [measure(policy, texts, n, k, args, least) for k in args.k]
    save(rows)


if __name__ == "__main__":
    main()
