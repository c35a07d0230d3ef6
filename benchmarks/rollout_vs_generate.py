"""Our sampler against `generate` of transformers: guided image tokens, no top-k, no VQ decoding.

Same process, weights and prompts; runs alternate; the median of each is compared, and beside it
stands the least time that the arithmetic could take: (trunk + head parameters) x rows x tokens x 2
flops, at the matmul rate measured here. Milliseconds are those of the CPU, of one thread: they
leave out what else the machine does.

    OMP_NUM_THREADS=1 python benchmarks/rollout_vs_generate.py
    OMP_NUM_THREADS=1 python benchmarks/rollout_vs_generate.py --model nano-emu3

An Emu3's `generate` gets a mask a step of the tokens that may stand there; the function that its
model card names is asked for every row of every step, and slower. Replaces the model's rows of
benchmarks/rollout_vs_generate.csv.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import LogitsProcessorList

from pairuni_nb.diffusion import load_checkpoint, policy_for
from pairuni_nb.rollout import Sampling, noise, unconditional
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


def janus_arguments(policy, prompts, k):
    "What a Janus's `generate` needs to draw k times a prompt."
    batch = policy._tokenize(prompts, generation_mode="image")
    return dict(**batch, generation_mode="image", num_return_sequences=k)


class Allowed:
    "Leaves to each step of an Emu3's drawing the tokens that may stand there."

    def __init__(self, policy, start):
        never = torch.full((policy.image_tokens, policy.vocabulary("u")), -torch.inf)
        never[:, policy.words[: policy.codes]] = 0.0
        for place, token in policy.forced("g").items():
            never[place] = -torch.inf
            never[place, policy.words[token]] = 0.0
        self.never, self.start = never, start

    def __call__(self, ids, scores):
        return scores + self.never[ids.shape[1] - self.start]


def emu3_arguments(policy, prompts, k):
    "The same of an Emu3's, which repeats prompts, but not their negatives."
    asked = policy.image_prompts([text for text in prompts for _ in range(k)])
    ids, mask = asked.input_ids, asked.attention_mask
    nothing = unconditional(mask, policy.bos, policy.pad, policy.boi)
    return dict(
        input_ids=ids,
        attention_mask=mask,
        negative_prompt_ids=nothing,
        negative_prompt_attention_mask=mask,
        logits_processor=LogitsProcessorList([Allowed(policy, ids.shape[1])]),
        max_new_tokens=policy.image_tokens,
    )


ARGUMENTS = {"janus": janus_arguments, "emu3": emu3_arguments}


def compare(policy, prompts, k, w, repeats):
    "Median, least and most seconds of `generate` and of `sample`"
    batch = ARGUMENTS[policy.family](policy, prompts, k)
    how = dict(do_sample=True, top_k=0, guidance_scale=w)
    ready, sampling = policy.image_prompts(prompts), Sampling(cfg_weight=w)
    step = iter(range(10**6))

    def theirs():
        return policy.model.generate(**batch, **how)

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
    row = dict(model=args.model, threads=torch.get_num_threads(), images=n, k=k)
    for name, times in (("generate", theirs), ("ours", ours)):
        for what, t in zip(("ms", "min", "max"), times):
            row[f"{name}_{what}"] = round(t * 1e3)
    return row | dict(ratio=round(ratio, 2), least_ms=round(least * 1e3), repeats=args.repeats)


def head_parameters(policy):
    "Of what makes a drawing's logits."
    if policy.family == "emu3":
        return policy.codes * policy.model.lm_head.in_features
    return sum(p.numel() for p in policy.model.model.generation_head.parameters())


def save(rows):
    "Write the table; rows of other models stay."
    with CSV.open(newline="") as f:
        others = [row for row in csv.DictReader(f) if row["model"] != rows[0]["model"]]
    rows = sorted([*others, *rows], key=lambda row: row["model"])
    with CSV.open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("janus-nano", "nano-emu3"), default="janus-nano")
    parser.add_argument("--images", type=int, nargs="+", default=[8, 32, 128])
    k_help = "rollouts a prompt; 8 as in training, 1: nothing shared"
    parser.add_argument("--k", type=int, nargs="+", default=[8, 1], help=k_help)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cfg-weight", type=float, help="5; of nano-emu3: its preset's 3")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if args.cfg_weight is None:
        args.cfg_weight = 3.0 if args.model == "nano-emu3" else 5.0
    policy, rate = policy_for(*load_checkpoint(args.model)), matmul_rate()
    params = sum(p.numel() for p in policy.language_model.layers.parameters())
    params += head_parameters(policy)
    texts = [r["prompt"] for r in records("g", max(args.images), seed=0)]
    print(
        f"{args.model}, {torch.get_num_threads()} threads, matmul {rate / 1e9:.0f} Gflop/s, "
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
