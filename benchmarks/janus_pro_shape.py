"""Janus-Pro's shape at a small width: our image rollout against `generate` and a plain loop, and the peak memory of an update.

True: 576 image tokens, vocabularies of 102,400 and 16,384, guidance 5, left padding. Small: width and layers. Random weights, the
same for all. `rollout` alternates the methods after a warm-up and takes medians (with one CPU thread, of CPU seconds); `plain` is the usual loop: one row an image and
its unconditional twin, each with its own prompt, and a DynamicCache. `update` starts a child process for every figure: one pass
over the rows, backward, AdamW. `naive` scores the right positions with the right head and keeps all logits.

    OMP_NUM_THREADS=1 python benchmarks/janus_pro_shape.py rollout update
"""
import argparse
import csv
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from pairuni_nb.janus_pro import random_janus_pro
from pairuni_nb.rollout import ImagePrompts, JanusPolicy, Rollouts, Sampling, TextPrompts, noise, unconditional
from transformers import DynamicCache

CSV = Path(__file__).with_suffix(".csv")
PROMPTS = ["a red star at the top", "two blue circles and a green square, on stripes", "a pink cross", "three squares in a row, on dots"]


@torch.inference_mode()
def plain(policy, prompts, k, w):
    "Guided image tokens by a loop over a DynamicCache"
    model, ids, mask = policy.model, prompts.input_ids.repeat_interleave(k, 0), prompts.attention_mask.repeat_interleave(k, 0)
    x = model.get_input_embeddings()(torch.stack([ids, unconditional(mask, policy.bos, policy.pad, policy.boi)], 1).flatten(0, 1))
    mask, cache, tokens = mask.repeat_interleave(2, 0), DynamicCache(), []
    for _ in range(policy.image_tokens):
        place = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1]:]
        state = model.model.language_model(inputs_embeds=x, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        logits = model.model.generation_head(state)
        cond, uncond = logits[0::2], logits[1::2]
        tokens.append(torch.multinomial((uncond + w*(cond - uncond)).softmax(-1), 1))
        x = model.prepare_embeddings_for_image_generation(tokens[-1].repeat_interleave(2, 0))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.cat(tokens, 1)


def policy_of(args):
    "The model of the arguments' shape"
    model, processor = random_janus_pro(args.width, args.layers)
    return JanusPolicy(model.to(args.device, getattr(torch, args.dtype)), processor)


def seconds(f, device):
    "CPU seconds of one thread, which a busy machine disturbs less; else of the clock"
    now = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    f()
    if device == "cuda": torch.cuda.synchronize()
    return now() - start


def rollout(args):
    "Rows of the CSV: seconds of each method for n images"
    policy = policy_of(args)
    policy.image_tokens = policy.model.model.vision_model.config.num_image_tokens = args.tokens
    for n, k in ((n, k) for n in args.images for k in args.k):
        texts, step = [PROMPTS[i % 4] for i in range(-(-n//k))], iter(range(10**6))
        batch, prompts, sampling = policy._tokenize(texts, generation_mode="image"), policy.image_prompts(texts), Sampling(cfg_weight=5.)
        methods = dict(
            generate=lambda: policy.model.generate(**batch, generation_mode="image", do_sample=True, top_k=0, guidance_scale=5., num_return_sequences=k),
            plain=lambda: plain(policy, prompts, k, 5.),
            ours=lambda: policy.sample(prompts, k, noise(0, next(step), range(len(texts)), k, args.tokens), sampling, gb=args.gb))
        for f in methods.values(): f()
        times = {name: [] for name in methods}
        for _ in range(args.repeats):
            for name, f in methods.items(): times[name].append(seconds(f, args.device))
        for name, t in times.items(): yield dict(measure="rollout", rows=n, k=k, method=name, unit="s", value=statistics.median(t), low=min(t), high=max(t))


def resident():
    "Peak MB of this process alone: `ru_maxrss` starts at what the parent held"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])*1.024e-3


def child(args):
    "Print the MB before an update and at its peak"
    policy, (task, method) = policy_of(args), args.child.split("-")
    T, rows = (args.text_tokens, args.text_rows) if task == "u" else (args.tokens, args.image_rows)
    ids = torch.full((1, 40), policy.boi, device=args.device); ids[:, 0] = policy.bos
    prompts = (TextPrompts(ids, torch.ones_like(ids), None) if task == "u" else ImagePrompts(ids, torch.ones_like(ids)))
    tokens = torch.randint(policy.vocabulary(task), (rows, T), device=args.device)
    zero, full = torch.zeros(rows, T, device=args.device), torch.ones_like(tokens, dtype=torch.bool)
    r = Rollouts(prompts, rows, torch.zeros(rows, dtype=torch.long, device=args.device), tokens, full, full[:, 0], zero, zero, Sampling(cfg_weight=5.))
    if method == "checkpointed": policy.checkpoint_layers()
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)
    peak = lambda: torch.cuda.max_memory_allocated()/1e6 if args.device == "cuda" else resident()
    def step():
        logp = policy.logits(r).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1) if method == "naive" else policy(r)
        (logp - logp.detach()).exp().mean().backward()
        opt.step()
    print(peak(), seconds(step, args.device), peak())


def update(args):
    "Rows of the CSV: peak memory and seconds of an update, each from a process of its own"
    for task, rows in (("u", args.text_rows), ("g", args.image_rows)):
        for method in ("naive", "ours", "checkpointed"):
            out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", f"{task}-{method}"], capture_output=True, text=True, check=True).stdout
            before, took, peak = map(float, out.split()[-3:])
            yield dict(measure=f"update {task}", rows=rows, k=rows, method=method, unit="MB", value=peak, low=before, high=peak)
            yield dict(measure=f"update {task}", rows=rows, k=rows, method=method, unit="s", value=took, low=took, high=took)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="+", choices=("rollout", "update"))
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--tokens", type=int, default=576)
    p.add_argument("--images", type=int, nargs="+", default=[8, 32])
    p.add_argument("--k", type=int, nargs="+", default=[8, 1], help="rollouts a prompt")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--gb", type=float, default=8., help="of rollouts' keys and values")
    p.add_argument("--text-rows", type=int, default=32)
    p.add_argument("--text-tokens", type=int, default=64)
    p.add_argument("--image-rows", type=int, default=16)
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="float32", help="of the weights")
    p.add_argument("--csv", default=str(CSV))
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args()
    transformers.logging.set_verbosity_error()
    if args.child: return child(args)
    where = dict(width=args.width, layers=args.layers, device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu", threads=torch.get_num_threads(),
                 torch=torch.__version__, transformers=transformers.__version__)
    old = list(csv.DictReader(open(args.csv))) if Path(args.csv).exists() else []
    rows = [r for r in old if r["measure"].split()[0] not in args.what]  # what is not measured now stays
    for row in (row for what in args.what for row in dict(rollout=rollout, update=update)[what](args)):
        rows.append(row | {k: round(row[k], 3) for k in ("value", "low", "high")} | where)
        print("{measure:9} {rows:4} {k:3} {method:12} {value:10.3f} {unit:2} [{low:.3f}, {high:.3f}]".format(**rows[-1]), flush=True)
    with open(args.csv, "w", newline="") as f:
        writer = csv.DictWriter(f, ["measure", "rows", "k", "method", "unit", "value", "low", "high", *where], lineterminator="\n")
        writer.writeheader(); writer.writerows(sorted(rows, key=lambda r: r["measure"]))


if __name__ == "__main__": main()
