"""Janus-Pro's shape: our image rollout against `generate` and a plain loop, and a card's limits.

`rollout` and `update` keep 576 image tokens, vocabularies of 102,400 and 16,384, guidance 5 and
left padding; width and layers are small. `rollout` alternates the methods after a warm-up and takes
medians (with one CPU thread, of CPU seconds); `plain` is the usual loop: one row an image and its
unconditional twin, each with its own prompt, and a DynamicCache. `update` measures the peak memory
of an update and starts a child process for every figure: one pass over the rows, backward, AdamW.
`naive` scores the right positions with the right head and keeps all logits; either with and without
checkpointed layers.

`card` is for a GPU: Janus-Pro-1B whole, bfloat16 over float32 (`generate`: bfloat16). Images a
second by `generate` and by our sampler, each with its share of the memory-bandwidth limit (trunk
and head read once a token, and every row's keys and values so far) and its ratio to `generate`;
then seconds and GB of a training step on two pairs, the second of two. A method that does not fit
the memory is left out. `predicted` is what the plan says of a card with the bandwidth found; a card
that it does not know computes as fast as an H100. Random weights everywhere.

    OMP_NUM_THREADS=1 python benchmarks/janus_pro_shape.py rollout update
    python benchmarks/janus_pro_shape.py card [--bandwidth 3350]
    python benchmarks/janus_pro_shape.py card --images --preset janus-pro-1b-24gb --card-gb 24

`scripts/on_a_gpu.sh` runs it in parts, with the tests that need a GPU.

Write benchmarks/janus_pro_shape.csv, and janus_pro_card.csv for a card.
"""

import argparse
import copy
import csv
import itertools
import math
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from pairuni_nb.janus import random_janus_pro
from pairuni_nb.pairing import make_pairs
from pairuni_nb.plan import (
    CARDS,
    Work,
    kv_bytes,
    matrices,
    parameters,
    peak,
    sampling_seconds,
    shape_of,
    step_seconds,
    tasks,
)
from pairuni_nb.rollout import (
    ImagePrompts,
    JanusPolicy,
    Rollouts,
    Sampling,
    TextPrompts,
    noise,
    unconditional,
)
from pairuni_nb.settings import PRO, preset
from pairuni_nb.prepare import add_lora, round_frozen
from pairuni_nb.processes import shard
from pairuni_nb.step import train_step
from pairuni_nb.world import records
from transformers import DynamicCache

CSV = Path(__file__).with_suffix(".csv")
CARD = dict(width=2048, layers=24, images=[16, 64, 256], k=[8], repeats=3)
CARD |= dict(csv=str(CSV.with_name("janus_pro_card.csv")))
SMALL = dict(width=256, layers=8, images=[8, 32], k=[8, 1], repeats=5, gb=8.0, text_tokens=64)
SMALL |= dict(device="cpu", csv=str(CSV))
COLUMNS = "measure rows k method unit value low high predicted".split()
PROMPTS = [
    "a red star at the top",
    "two blue circles and a green square, on stripes",
    "a pink cross",
    "three squares in a row, on dots",
]


@torch.inference_mode()
def plain(policy, prompts, k, w):
    "Guided image tokens by a loop over a DynamicCache"
    model, ids, mask = (
        policy.model,
        prompts.input_ids.repeat_interleave(k, 0),
        prompts.attention_mask.repeat_interleave(k, 0),
    )
    x = model.get_input_embeddings()(
        torch.stack([ids, unconditional(mask, policy.bos, policy.pad, policy.boi)], 1).flatten(0, 1)
    )
    mask, cache, tokens = mask.repeat_interleave(2, 0), DynamicCache(), []
    for _ in range(policy.image_tokens):
        place = (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        state = model.model.language_model(
            inputs_embeds=x,
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        logits = model.model.generation_head(state)
        cond, uncond = logits[0::2], logits[1::2]
        tokens.append(torch.multinomial((uncond + w * (cond - uncond)).softmax(-1), 1))
        x = model.prepare_embeddings_for_image_generation(tokens[-1].repeat_interleave(2, 0))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.cat(tokens, 1)


def policy_of(args):
    "The model of the arguments' shape"
    with torch.device(args.device):
        model, processor = random_janus_pro(args.width, args.layers, whole=args.width == 2048)
    return JanusPolicy(model.to(getattr(torch, args.dtype)), processor)


def seconds(f, device):
    "CPU seconds of one thread, which a busy machine disturbs less; else of the clock"
    now = (
        time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    )
    start = now()
    f()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def alternate(methods, args, warm_up=1):
    "Seconds of each method that fits the memory, one run of each in turn after those of a warm-up"
    times = {name: [] for name in methods}
    for turn in range(1 - warm_up, args.repeats + 1):
        for name in list(times):
            try:
                took = seconds(methods[name], args.device)
            except torch.cuda.OutOfMemoryError:
                took = None
            if took is None:
                del times[name]
                torch.cuda.empty_cache()
            elif turn:
                times[name].append(took)
    return times


def methods_of(policy, model, n, k, args):  # model: for `generate`
    "Name -> function that draws n images, and the prompts"
    texts, step = [PROMPTS[i % 4] for i in range(-(-n // k))], iter(range(10**6))
    batch, prompts, sampling = (
        policy._tokenize(texts, generation_mode="image"),
        policy.image_prompts(texts),
        Sampling(cfg_weight=5.0),
    )

    def ours():
        policy.sample(
            prompts,
            k,
            noise(0, next(step), range(len(texts)), k, args.tokens),
            sampling,
            gb=args.gb,
        )

    def generate():
        return model.generate(
            **batch,
            generation_mode="image",
            do_sample=True,
            top_k=0,
            guidance_scale=5.0,
            num_return_sequences=k,
        )

    return dict(generate=generate, plain=lambda: plain(policy, prompts, k, 5.0), ours=ours), prompts


def shorten(policy, tokens, model=None):
    "Images of so many tokens, by another model, too"
    policy.image_tokens = tokens
    for one in (policy.model, model or policy.model):
        one.model.vision_model.config.num_image_tokens = tokens


def rollout(args):
    "Rows of the CSV: seconds of each method for n images"
    policy = policy_of(args)
    shorten(policy, args.tokens)
    for n, k in ((n, k) for n in args.images for k in args.k):
        methods, _ = methods_of(policy, policy.model, n, k, args)
        for name, t in alternate(
            {m: methods[m] for m in ("generate", "plain", "ours")}, args
        ).items():
            yield dict(
                measure="rollout",
                rows=n,
                k=k,
                method=name,
                unit="s",
                value=statistics.median(t),
                low=min(t),
                high=max(t),
            )


def copied(device, repeats=9):
    "GB/s of a copy on the device, read and written"
    x = torch.empty(2**30 if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / min(seconds(lambda: y.copy_(x), device) for _ in range(repeats)) / 1e9


def least(shape, prompts, n, chunks, args):
    """Seconds that reading takes: trunk in bfloat16 and head in float32 for every token and chunk,
    keys and values so far of two rows an image"""
    weights, context = (
        2 * matrices(shape) + 4 * parameters(shape)["image_head"],
        prompts.input_ids.shape[1] + args.tokens / 2,
    )
    return (
        args.tokens
        * (chunks * weights + 2 * n * kv_bytes(shape, "bf16") * context)
        / args.bandwidth
        / 1e9
    )


def planned_card(args):
    "The card as the plan takes it, with the bandwidth found"
    name = torch.cuda.get_device_name() if args.device == "cuda" else ""
    known = [card for full, card in CARDS.items() if full.removesuffix(" 80GB") in name]
    return replace((known or [CARDS["H100 80GB"]])[0], bandwidth=args.bandwidth)


def planned_draw(shape, prompts, n, k, args):
    "Seconds that the plan gives n drawings"
    s = replace(PRO, pairs_per_step=len(prompts), rollouts=k, rollout_gb=args.gb)
    shape = replace(shape, image_tokens=args.tokens)
    _, t = tasks(shape, Work(s, prompt_tokens=prompts.input_ids.shape[1]))
    return sampling_seconds(shape, s, t._replace(rows=n), planned_card(args))


def draws(policy, shape, args):
    "Rows of the CSV: how fast each method draws"
    model = copy.deepcopy(
        policy.model
    ).bfloat16()  # `generate` knows no mixed precision here: its cache wants one dtype
    args = copy.copy(args)  # a step keeps to its preset's memory for rollouts
    args.gb = args.gb or (
        0.6 * torch.cuda.mem_get_info()[0] / 1e9 if args.device == "cuda" else 8.0
    )
    shorten(policy, min(64, args.tokens), model)
    methods, _ = methods_of(policy, model, args.images[0], args.k[0], args)
    for name in ("generate", "ours"):
        methods[name]()
    shorten(policy, args.tokens, model)
    for n, k in ((n, k) for n in args.images for k in args.k):
        methods, prompts = methods_of(policy, model, n, k, args)
        chunks = -(-n // policy.rows_that_fit(args.gb, prompts, Sampling(cfg_weight=5.0)))
        limit, times = (
            least(shape, prompts, n, chunks, args),
            alternate({m: methods[m] for m in ("generate", "ours")}, args, 0),
        )
        for name, t in times.items():
            row, took = dict(measure="card draw", rows=n, k=k, method=name), sorted(t)
            middle, base = statistics.median(t), times.get("generate")
            plan = planned_draw(shape, prompts, n, k, args)
            for unit, all_of_it in {"images/s": n, "of limit": limit}.items():
                yield row | dict(
                    unit=unit,
                    value=all_of_it / middle,
                    low=all_of_it / took[-1],
                    high=all_of_it / took[0],
                    predicted="" if name == "generate" else all_of_it / plan,
                )
            if base:
                yield row | dict(
                    unit="x generate",
                    value=statistics.median(base) / middle,
                    low=min(base) / took[-1],
                    high=max(base) / took[0],
                )


def planned_step(shape, s, args):
    "Seconds and GB that the plan gives a training step"
    work = Work(s)  # sharded in one process: the plan would only ask for more of them
    parts = step_seconds(shape, work, planned_card(args))
    drawing = sum(seconds for part, seconds in parts.items() if part != "update")
    whole = drawing + parts["update"]
    gb = peak(shape, work)
    return {"rollout": drawing, "score and update": parts["update"], "whole": whole, "peak": gb}


def split(policy):
    "Shard a policy in a group of this process alone; the whole copy that samples"
    backend = "nccl" if policy.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    whole = round_frozen(copy.deepcopy(policy).requires_grad_(False))
    shard(policy)
    return whole


def settings_of(args):
    "The preset's, for so many pairs"
    s = preset(args.preset).train
    return replace(
        s,
        pairs_per_step=args.pairs,
        rollouts=min(s.rollouts, args.k[0]),
        rollout_gb=args.gb or s.rollout_gb,
        max_new_tokens=args.text_tokens or s.max_new_tokens,
        shard=args.shard,
    )


def two_steps(policy, sampler, s, args):
    "Metrics, seconds and peak GB of each of two training steps, with random rewards"
    trained = [p for p in policy.parameters() if p.requires_grad]
    opt, accelerator = torch.optim.AdamW(trained, lr=s.lr), Accelerator(cpu=args.device == "cpu")
    pairs, _ = make_pairs(records("u", 30, 0), records("g", 30, 0), clusters=4)
    rows, ids = [pairs[j] for j in range(args.pairs)], list(range(args.pairs))

    def dice(prompts, outputs, truths):
        return torch.rand(len(outputs)).tolist()

    cuda = args.device == "cuda"
    for i in range(2):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        start, judges = time.perf_counter(), dict(u=dice, g=dice)
        m, _ = train_step(policy, opt, rows, ids, i, s, judges, accelerator, sampler=sampler)
        if cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        yield m, took, torch.cuda.max_memory_allocated() / 1e9 if cuda else resident() / 1e3


def step(policy, shape, args):
    "Rows of the CSV: seconds of a training step's parts, and its peak GB; the second step of two"
    s = settings_of(args)
    if s.lora_rank:
        round_frozen(add_lora(policy, s.lora_rank))
    if s.gradient_checkpointing:
        policy.checkpoint_layers()
    sampler = split(policy) if s.shard else None
    plan = planned_step(shape, s, args)
    name = f"{args.preset} sharded" if s.shard else args.preset
    row = dict(measure="card step", rows=args.pairs * s.rollouts, k=s.rollouts)

    def line(part, unit, value):
        return row | dict(
            method=f"{name} {part}",
            unit=unit,
            value=value,
            low=value,
            high=value,
            predicted=plan.get(part, ""),
        )

    for i, (m, took, gb) in enumerate(two_steps(policy, sampler, s, args)):
        if i == 0:
            yield line("first step", "s", took)  # should the time be over before the second
            yield line("first peak", "GB", gb)
    for part in ("rollout", "score", "update"):
        yield line(part, "s", m[f"sec_{part}"])
    yield line("score and update", "s", m["sec_score"] + m["sec_update"])
    yield line("whole", "s", took)
    yield line("peak", "GB", gb)
    if sampler:
        dist.destroy_process_group()


def card(args):
    "Rows of the CSV: what a card makes of Janus-Pro-1B"
    if args.card_gb and args.device == "cuda":
        share = args.card_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    policy = policy_of(args)
    policy.precision, shape = "bf16", shape_of(policy.model.config)
    args.bandwidth = args.bandwidth or copied(args.device)
    yield dict(
        measure="card",
        rows=0,
        k=0,
        method="bandwidth",
        unit="GB/s",
        value=args.bandwidth,
        low=args.bandwidth,
        high=args.bandwidth,
    )
    if args.images:
        shorten(policy, args.tokens)
        yield from draws(policy, shape, args)
        shorten(policy, 576)
    if not args.pairs:
        return
    try:
        yield from step(policy, shape, args)
    except torch.cuda.OutOfMemoryError:
        yield dict(
            measure="card step",
            rows=args.pairs * args.k[0],
            k=args.k[0],
            method=f"{args.preset} does not fit",
            unit="GB",
            value=math.nan,
            low=math.nan,
            high=math.nan,
        )


def resident():
    "Peak MB of this process alone: `ru_maxrss` starts at what the parent held"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1.024e-3


def child(args):
    "Print the MB before an update and at its peak"
    policy, (task, method) = policy_of(args), args.child.split("-")
    T, rows = (args.text_tokens, args.text_rows) if task == "u" else (args.tokens, args.image_rows)
    ids = torch.full((1, 40), policy.boi, device=args.device)
    ids[:, 0] = policy.bos
    prompts = (
        TextPrompts(ids, torch.ones_like(ids), None)
        if task == "u"
        else ImagePrompts(ids, torch.ones_like(ids))
    )
    tokens = torch.randint(policy.vocabulary(task), (rows, T), device=args.device)
    zero, full = torch.zeros(rows, T, device=args.device), torch.ones_like(tokens, dtype=torch.bool)
    r = Rollouts(
        prompts,
        torch.zeros(rows, dtype=torch.long, device=args.device),
        tokens,
        full,
        full[:, 0],
        zero,
        zero,
        Sampling(cfg_weight=5.0),
    )
    if "checkpointed" in method:
        policy.checkpoint_layers()
    opt = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-6)

    def peak():
        return torch.cuda.max_memory_allocated() / 1e6 if args.device == "cuda" else resident()

    def step():
        logp = (
            policy.logits(r).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
            if "naive" in method
            else policy(r)
        )
        (logp - logp.detach()).exp().mean().backward()
        opt.step()

    print(peak(), seconds(step, args.device), peak())


def update(args):
    "Rows of the CSV: peak memory and seconds of an update, each from a process of its own"
    env = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536"
    }  # glibc gives back what is freed: else the peak is that of its holes
    for task, rows in (("u", args.text_rows), ("g", args.image_rows)):
        for method in ("naive", "ours", "naive checkpointed", "ours checkpointed"):
            out = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--child", f"{task}-{method}"],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            before, took, peak = map(float, out.split()[-3:])
            yield dict(
                measure=f"update {task}",
                rows=rows,
                k=rows,
                method=method,
                unit="MB",
                value=peak,
                low=before,
                high=peak,
            )
            yield dict(
                measure=f"update {task}",
                rows=rows,
                k=rows,
                method=method,
                unit="s",
                value=took,
                low=took,
                high=took,
            )


def arguments(argv):
    "What was asked for"
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("what", nargs="+", choices=("rollout", "update", "card"))
    p.add_argument("--width", type=int)
    p.add_argument("--layers", type=int)
    p.add_argument("--tokens", type=int, default=576, help="of a drawing")
    p.add_argument("--images", type=int, nargs="*", help="drawn at once; with no number, none")
    p.add_argument("--k", type=int, nargs="+", help="rollouts a prompt")
    p.add_argument("--repeats", type=int)
    p.add_argument(
        "--gb",
        type=float,
        help="of rollouts' keys and values; a card's default: 60 %% of what is free",
    )
    p.add_argument("--text-rows", type=int, default=32)
    p.add_argument("--text-tokens", type=int)
    p.add_argument("--image-rows", type=int, default=16)
    p.add_argument("--pairs", type=int, default=2, help="of a card's training step; 0: no step")
    p.add_argument("--preset", default="janus-pro-1b", help="settings of a card's training step")
    p.add_argument("--shard", action="store_true", help="the step by FSDP, in one process")
    p.add_argument("--card-gb", type=float, help="GB that a GPU may use, as if it had no more")
    p.add_argument("--bandwidth", type=float, help="GB/s of the card; without it, a copy is timed")
    p.add_argument("--device")
    p.add_argument("--dtype", default="float32", help="of the weights")
    p.add_argument("--csv")
    p.add_argument("--child", help=argparse.SUPPRESS)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    p.set_defaults(**(CARD | dict(device=here) if "card" in argv else SMALL))
    return p.parse_args(argv)


def write(rows, file, columns):
    "All rows, by what they measure"
    with open(file, "w", newline="") as f:
        # rows from before there was a prediction have none
        writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: r["measure"]))


def main(argv):
    args = arguments(argv)
    transformers.logging.set_verbosity_error()
    if args.child:
        return child(args)
    where = dict(
        width=args.width,
        layers=args.layers,
        device=torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    old = list(csv.DictReader(open(args.csv))) if Path(args.csv).exists() else []
    rows = [r for r in old if r["measure"].split()[0] not in args.what]  # the others stay
    measures = dict(rollout=rollout, update=update, card=card)
    line = "{measure:9} {rows:4} {k:3} {method:25} {value:10.3f} {unit:10} "
    line += "[{low:.3f}, {high:.3f}] {predicted}"
    for row in itertools.chain.from_iterable(measures[what](args) for what in args.what):
        row = dict(predicted="") | row
        numbers = {k: round(x, 3) for k, x in row.items() if isinstance(x, float)}
        rows.append(row | numbers | where)
        print(line.format(**rows[-1]), flush=True)
        write(rows, args.csv, [*COLUMNS, *where])  # a card may be gone before the last row


if __name__ == "__main__":
    main(sys.argv[1:])
