"""Our sampler against `generate` of transformers: guided image tokens, no top-k, VQ decoding left out.

Same process, weights and prompts; runs alternate; the median of each is compared, and beside it stands the least time that the
arithmetic could take: (trunk + head parameters) x rows x tokens x 2 flops, at the matmul rate measured here.

    OMP_NUM_THREADS=1 python benchmarks/rollout_vs_generate.py
    OMP_NUM_THREADS=2 python benchmarks/rollout_vs_generate.py

Writes benchmarks/rollout_vs_generate.csv; a number of threads replaces its own rows and leaves the others.
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
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def matmul_rate(n=1024, repeats=9):
    "Flops a second of a square matmul"
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def alternate(functions, repeats):
    "Seconds of each function, one run of each in turn, after a warm-up"
    for f in functions:
        f()
    return list(zip(*[[seconds(f) for f in functions] for _ in range(repeats)]))


def compare(policy, prompts, k, w, repeats):
    "Median, least and most seconds of `generate` and of `sample`"
    batch, ready, step = (
        policy._tokenize(prompts, generation_mode="image"),
        policy.image_prompts(prompts),
        iter(range(10**6)),
    )
    sampling = Sampling(cfg_weight=w)
    theirs = lambda: policy.model.generate(
        **batch,
        generation_mode="image",
        do_sample=True,
        top_k=0,
        guidance_scale=w,
        num_return_sequences=k,
    )
    ours = lambda: policy.sample(
        ready, k, noise(0, next(step), range(len(prompts)), k, policy.image_tokens), sampling
    )
    return [(statistics.median(t), min(t), max(t)) for t in alternate([theirs, ours], repeats)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument(
        "--k",
        type=int,
        nargs="+",
        default=[8, 1],
        help="rollouts a prompt; 8 as in training, 1: nothing shared",
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cfg-weight", type=float, default=5.0)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    policy, rate = JanusPolicy(*load_janus()), matmul_rate()
    parts = policy.model.model.language_model.layers, policy.model.model.generation_head
    params = sum(p.numel() for part in parts for p in part.parameters())
    texts = [r["prompt"] for r in records("g", max(args.images), seed=0)]
    print(
        f"{torch.get_num_threads()} threads, matmul {rate / 1e9:.0f} Gflop/s, {params / 1e6:.2f} M parameters in trunk and head, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, median [min, max] of {args.repeats}"
    )
    threads, rows = torch.get_num_threads(), []
    print(
        "images  prompts x K   generate, ms         ours, ms             ratio  least, ms  ours / least"
    )
    for n in args.images:
        for k in args.k:
            (a, a0, a1), (b, b0, b1) = compare(
                policy, texts[: n // k], k, args.cfg_weight, args.repeats
            )
            least = (
                params * 2 * n * policy.image_tokens * 2 / rate
            )  # two rows an image, conditional and unconditional
            print(
                f"{n:6d}  {n // k:7d} x {k}   {a * 1e3:5.0f} [{a0 * 1e3:.0f}, {a1 * 1e3:.0f}]".ljust(
                    44
                )
                + f"{b * 1e3:5.0f} [{b0 * 1e3:.0f}, {b1 * 1e3:.0f}]".ljust(21)
                + f"{a / b:5.2f}  {least * 1e3:9.0f}  {b / least:12.1f}",
                flush=True,
            )
            rows.append(
                dict(
                    threads=threads,
                    images=n,
                    k=k,
                    generate_ms=round(a * 1e3),
                    generate_min=round(a0 * 1e3),
                    generate_max=round(a1 * 1e3),
                    ours_ms=round(b * 1e3),
                    ours_min=round(b0 * 1e3),
                    ours_max=round(b1 * 1e3),
                    ratio=round(a / b, 2),
                    least_ms=round(least * 1e3),
                    repeats=args.repeats,
                )
            )
    kept = (
        [r for r in csv.DictReader(CSV.open()) if int(r["threads"]) != threads]
        if CSV.exists()
        else []
    )
    with CSV.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=lambda r: int(r["threads"])))


if __name__ == "__main__":
    main()
