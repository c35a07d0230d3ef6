#!/usr/bin/env bash
# What only a GPU can tell, in at most 8 minutes on a card of 80 GB, without a network.
#
#     scripts/on_a_gpu.sh [--toy] [OUT] [WHEELS]
#
# OUT (default: on_a_gpu) receives the measurements as CSV files, on_a_gpu.txt (one page: what
# passed, what failed and how, each figure beside the plan's) and log.txt. WHEELS is a folder of
# wheels for what the machine lacks; PyTorch with CUDA must be there. PYTHON names another
# interpreter than python3. --toy rehearses all of it on a CPU, at toy sizes.
#
# The parts run in order of worth, each up to a moment of its own; what one leaves over goes to the
# next, and one that fails stops no other. Then the exit code is 1.
set -u

stop() {
    echo "on_a_gpu.sh: $1" >&2
    exit 2
}

toy=""
if [ "${1:-}" = --toy ]; then
    toy=1
    shift
fi
case "${1:-}" in -*) stop "unknown option $1: there is only --toy" ;; esac
[ $# -le 2 ] || stop "$# folders are too many: name OUT and WHEELS"
out=${1:-on_a_gpu} wheels=${2:-${WHEELS:-}} python=${PYTHON:-python3}
[ -z "$wheels" ] || [ -d "$wheels" ] || stop "WHEELS is no folder: $wheels"
[ "${out:0:1}" = / ] || out=$PWD/$out
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

page=$out/on_a_gpu.txt log=$out/log.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$scratch/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

lacks=""
if [ -n "$wheels" ] && compgen -G "$wheels/*.whl" >/dev/null; then
    echo "== wheels, at most 25 s"
    timeout 25 "$python" -m pip install -q --no-index --no-deps --no-compile \
        --target "$scratch/site" "$wheels"/*.whl >"$scratch/said" 2>&1 ||
        lacks="wheels: exit code $?: $(tail -n 1 "$scratch/said")"
fi
"$python" - "$toy" >"$scratch/device" 2>"$scratch/said" <<'EOF' || stop "$(tail -n 1 "$scratch/said")"
import platform
import sys

try:
    import accelerate
    import torch
    import transformers

    import pairuni_nb.train
except ModuleNotFoundError as e:
    sys.exit(f"Python's module {e.name} is missing: put its wheel into the folder WHEELS")
if not (sys.argv[1] or torch.cuda.is_available()):
    sys.exit("PyTorch sees no GPU here: take a machine with one, or rehearse with --toy")
device = f"the CPU, {platform.machine()}"
if not sys.argv[1]:
    card = torch.cuda.get_device_properties(0)
    device = f"{card.name}, {card.total_memory / 1e9:.1f} GB"
print(f"device: {device}; Python {platform.python_version()}, torch {torch.__version__},", end=" ")
print(f"CUDA {torch.version.cuda}, transformers {transformers.__version__},", end=" ")
print(f"accelerate {accelerate.__version__}")
EOF
mkdir -p "$out" || stop "$out cannot be made: name another folder"
rm -f "$out"/draw_{1b,nano}.csv "$out"/step_{1b,24gb,sharded}.csv
: >"$log" || exit 2
failed=0
{
    echo "on_a_gpu.sh${toy:+ --toy}, $(date -u +'%Y-%m-%d %H:%M') UTC"
    cat "$scratch/device"
} | tee "$page"
if [ -n "$lacks" ]; then
    failed=1
    echo "$lacks" | tee -a "$page"
fi

part() { # NAME MOMENT COMMAND..: run it, until so many seconds after the start
    local name=$1 left=$(($2 - SECONDS)) began=$SECONDS code
    shift 2
    [ "$left" -gt 0 ] || left=1
    echo "== $name, at most $left s: $*" | tee -a "$log"
    timeout -k 3 "$left" "$@" 2>&1 | tee "$scratch/said" | tee -a "$log"
    code=${PIPESTATUS[0]}
    echo "$name: exit code $code, $((SECONDS - began)) s" >>"$page"
    if [ "$code" -ne 0 ]; then
        failed=$((failed + 1))
        [ "$code" -ne 124 ] || echo "    stopped: its time was over" >>"$page"
        grep -v '^ *$' "$scratch/said" | tail -n 6 | cut -c 1-300 | sed 's/^/    /' >>"$page"
    elif [ "$name" = tests ]; then
        tail -n 1 "$scratch/said" | sed 's/^/    /' >>"$page"
    fi
}

measure=("$python" benchmarks/janus_pro_shape.py card --repeats 1)
step=("${measure[@]}" --images)
draw=("${measure[@]}" --pairs 0)
nano=(--width 128 --layers 4) fewer=(--layers 6 --text-tokens 64) small=()
if [ "$toy" ]; then
    small=(--width 32 --layers 1 --tokens 4 --k 2 --text-tokens 4 --device cpu)
    step+=(--pairs 1)
    draw+=(--images 2)
fi
part tests 90 "$python" -m pytest -q -m gpu tests/test_gpu.py
part "draw, Janus-Pro-1B" 260 "${draw[@]}" --csv "$out/draw_1b.csv" "${small[@]}"
part "step, janus-pro-1b" 325 "${step[@]}" --csv "$out/step_1b.csv" "${small[@]}"
part "step, janus-pro-1b-24gb" 415 "${step[@]}" --preset janus-pro-1b-24gb --card-gb 24 \
    --csv "$out/step_24gb.csv" "${small[@]}"
part "draw, nano's width" 445 "${draw[@]}" --csv "$out/draw_nano.csv" "${nano[@]}" "${small[@]}"
part "step, one FSDP process" 470 "${step[@]}" --shard "${fewer[@]}" \
    --csv "$out/step_sharded.csv" "${small[@]}"

"$python" - "$out" >>"$page" <<'EOF'
import csv
import sys
from pathlib import Path

print("\nEach figure, and in brackets the plan's (.. of limit: memory bandwidth; aim 0.8, floor 0.5)")
for path in sorted(Path(sys.argv[1]).glob("[ds][rt]*_*.csv")):
    lines = {}
    for r in csv.DictReader(open(path)) if path.is_file() else ():
        figure = f"{float(r['value']):.4g} {r['unit']}"
        if r["predicted"]:
            figure += f" [{float(r['predicted']):.3g}]"
        lines.setdefault((r["rows"], r["method"]), []).append(figure)
    print(f"\n{path.name}")
    for (rows, method), figures in lines.items():
        print(f"  {rows + ' rows' if rows != '0' else '':9} {method:42} {', '.join(figures)}")
EOF
echo "$failed of the parts failed, after $SECONDS s" >>"$page"
cat "$page"
[ "$failed" -eq 0 ]
